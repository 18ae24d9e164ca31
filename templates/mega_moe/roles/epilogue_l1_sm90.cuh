// Role: L1 epilogue (the consumer warpgroups, after mma)
// Waits for:  nothing beyond the tile's sums
// Produces:   activation(sums) in the pool, E4M3 with the scale foreseen for the token or one of the block of 128, or BF16, in token order of K; counts the
//             tile in l1_done
// Registers:  config::kConsumerRegisters
//
// The weight transform puts gate in half 0 and the same value's up in half 1; without a gate the halves are two blocks of 128 values. A
// thread's values of a warpgroup's two 64-row tiles are neighbours in a stored row: `pair`. In E4M3 a pair is one 16-bit element of a
// matrix that stmatrix transposes; with two passes the first pass's value waits for the second's.
#pragma once
#include "mega_moe/activation.cuh"
#include "mega_moe/roles/columns_sm90.cuh"
#include "ptx/convert.cuh"

namespace roles {

// Values of this thread: value[m][2 * (column group) + column % 2].
template <uint32_t kWidth>
using Values = float[kM64][kWidth / 4];
template <uint32_t kWidth>
using Pairs = float[2][kWidth / 4];

// Of this thread's rows: gate and up.
using Bias = float[kM64][2];

__device__ __forceinline__ void load_bias(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t pass, uint32_t block, Bias& bias) {
    const float* row = c.ctx.params.l1_bias;
    if (row == nullptr) return;
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) {
        const uint32_t odd = kM64 == 2 ? m : pass, in_block = place.warpgroup * 64 + place.lane / 8 * 16 + place.warp * 4 + place.lane / 4 % 2 * 2 + odd;
        const uint64_t i = uint64_t(tile.expert) * config::kL1Rows + block * 128 + in_block;
        bias[m][0] = row[i];
        if constexpr (config::kIsGated) bias[m][1] = row[config::kIntermediatePadded + i];
    }
}

template <uint32_t kWidth, uint32_t kBlock>
__device__ __forceinline__ void activate_block(const mega_moe::Columns& columns, const Bias& bias, const Sums<kWidth>& sums, Values<kWidth>& value) {
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) {
#pragma unroll
        for (uint32_t j = 0; j < kWidth / 4; j += 2) {
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i) {
                const uint32_t r = j * 2 + i;  // half 0; half 1 is r + 2
                if constexpr (config::kIsGated) {
                    value[m][j + i] = mega_moe::activate(fmaf(sums[m][r], columns.alpha[0], bias[m][0]), fmaf(sums[m][r + 2], columns.alpha[1], bias[m][1]));
                } else {
                    value[m][j + i] = mega_moe::activate(fmaf(sums[m][r + 2 * kBlock], columns.alpha[0], bias[m][0]));
                }
            }
        }
    }
}

constexpr bool kStashes = config::kIsFp8 && config::kNumPasses > 1;
static_assert(config::kNumPasses == 1 || (config::kNumPasses == 2 && config::kL1BlocksPerTile == 1), "one stash, of one block");
constexpr uint32_t kCodePieces = 4 * config::kNumConsumerWarpgroups;  // of a column of codes: each warp makes one

// The first pass's values wait for the second's in `out`, four of a thread side by side. A warp's lie where its own codes will: no
// other need have read them before it writes those.
__device__ __forceinline__ uint32_t stashed(const Consumer& c, const Place& place, uint32_t j) {
    return ptx::smem_address(c.ctx.smem.out) + (4 * place.warpgroup + place.warp) * (config::kOutBytes / kCodePieces) + j * 128 + place.lane * 16;
}

// Halves `v`: a lane keeps the larger of its own and its partner's values, of one half of the columns; `first` says which.
template <uint32_t kNum, uint32_t kStep>
__device__ __forceinline__ void reduce_lanes(float* v, uint32_t lane, uint32_t& first, uint32_t& num, bool& is_mine) {
    if constexpr (kNum % 2 == 0) {
        const bool is_upper = (lane & kStep) != 0;
#pragma unroll
        for (uint32_t i = 0; i < kNum / 2; ++i) {
            const float sent = is_upper ? v[i] : v[i + kNum / 2], kept = is_upper ? v[i + kNum / 2] : v[i];
            v[i] = fmaxf(kept, __shfl_xor_sync(~0u, sent, kStep));
        }
        first += is_upper ? kNum / 2 : 0;
        if constexpr (kStep > 4) reduce_lanes<kNum / 2, kStep / 2>(v, lane, first, num, is_mine);
        else num = kNum / 2;
    } else {
#pragma unroll
        for (uint32_t i = 0; i < kNum; ++i) v[i] = fmaxf(v[i], __shfl_xor_sync(~0u, v[i], kStep));
        is_mine = is_mine && (lane & kStep) == 0;
        if constexpr (kStep > 4) reduce_lanes<kNum, kStep / 2>(v, lane, first, num, is_mine);
        else num = kNum;
    }
}

// Largest magnitude of each column over the block's 128 values, in largest_bits (bits of non-negative floats order like integers).
template <uint32_t kWidth>
__device__ __forceinline__ void reduce_amax(const Consumer& c, const Place& place, const Pairs<kWidth>& pair) {
    const uint32_t lane = place.lane;
    float largest[kWidth / 4];
#pragma unroll
    for (uint32_t j = 0; j < kWidth / 4; ++j) largest[j] = fmaxf(fabsf(pair[0][j]), fabsf(pair[1][j]));
    uint32_t first = 0, num = 0;
    bool is_mine = true;
    reduce_lanes<kWidth / 4, 16>(largest, lane, first, num, is_mine);
    constexpr uint32_t kMost = (kWidth / 4) % 8 == 0 ? kWidth / 32 : (kWidth / 4) % 4 == 0 ? kWidth / 16 : (kWidth / 4) % 2 == 0 ? kWidth / 8 : kWidth / 4;
#pragma unroll
    for (uint32_t i = 0; i < kMost; ++i) {
        const uint32_t j = first + i;
        if (is_mine) atomicMax(&mega_moe::largest_bits(c.ctx.smem)[j / 2 * 8 + lane % 4 * 2 + j % 2], __float_as_uint(largest[i]));
    }
}

// One thread a column: a block whose values do not lie well in E4M3 gets a scale factor of its own; the maximum starts over.
__device__ __forceinline__ void choose_scales(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t block) {
    mega_moe::SharedStorage& smem = c.ctx.smem;
    const uint32_t column = place.warpgroup * 128 + place.thread;
    if (column == 0) smem.may_not_fit = 0;
    if (column >= config::kBlockN) return;
    const float amax = __uint_as_float(mega_moe::largest_bits(smem)[column]);
    mega_moe::largest_bits(smem)[column] = 0;
    if (column >= tile.num_rows) return;
    const float foreseen = mega_moe::inverse_power(columns_of(c, 0).scale(column));
    if (amax == 0.0f || (amax >= config::kLeastForeseen * foreseen && amax <= 448.0f * foreseen)) return;
    const float scale = mega_moe::power_of_two(fmaxf(amax, config::kMinAmax) * (2.0f / 448.0f));
#pragma unroll
    for (uint32_t warpgroup = 0; warpgroup < config::kNumConsumerWarpgroups; ++warpgroup) columns_of(c, warpgroup).scale(column) = mega_moe::inverse_power(scale);
    c.ctx.params.acts_sf[uint64_t(block) * c.ctx.params.pool_rows + tile.pool_row + column] = scale;
    ptx::st_relaxed_gpu(&c.ctx.params.has_own_sf[tile.token_tile], 1);
}

// E4M3: the pairs of all columns, times one over their scale factors, to shared memory.
template <uint32_t kWidth>
__device__ __forceinline__ void put_codes(const Consumer& c, const Place& place, const Pairs<kWidth>& pair) {
    const uint32_t factors = ptx::smem_address(&columns_of(c, place.warpgroup).pairs[place.lane % 4].scale);
    uint32_t matrices[kWidth / 8];
#pragma unroll
    for (uint32_t i = 0; i < kWidth / 8; ++i) {
        const float2 inverse = ptx::ld_shared_f32x2(factors + 4 * i * sizeof(mega_moe::ColumnPair));
        matrices[i] = uint32_t(ptx::cvt_e4m3x2(pair[0][2 * i] * inverse.x, pair[1][2 * i] * inverse.x)) |
                      uint32_t(ptx::cvt_e4m3x2(pair[0][2 * i + 1] * inverse.y, pair[1][2 * i + 1] * inverse.y)) << 16;
    }
    if constexpr (kStashes) __syncwarp();  // all lanes have read what was stashed
    store_columns<kWidth, kCodePieces>(ptx::smem_address(c.ctx.smem.out), 4 * place.warpgroup + place.warp, place.lane, matrices);
}

// Sixteen codes of a block: whether one may be too large for its scale, and whether one shows that the scale is not too large for the block.
struct Look {
    bool is_over, is_seen;

    __device__ __forceinline__ explicit Look(const uint4& codes) {
        // Rounded, a quarter may have been less and 448 more: their neighbours count. No sum carries into the next byte.
        constexpr uint32_t kLeast = 0x80 - 0x29, kMost = 0x80 - 0x7E;
        static_assert(config::kLeastForeseen == 0.25f, "0x28 is the code of 0.25");
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
        uint32_t seen = 0, over = 0;
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t magnitudes = words[i] & 0x7F7F7F7Fu;
            seen |= magnitudes + kLeast * 0x01010101u, over |= magnitudes + kMost * 0x01010101u;
        }
        is_seen = (seen & 0x80808080u) != 0, is_over = (over & 0x80808080u) != 0;
    }
};

// E4M3: stores the block's valid columns to the pool, 16 bytes a thread, 8 threads a column. Returns whether all columns that this warp has
// stored surely fit their scale; a quick look that misses zeros and borderline cases.
template <uint32_t kWidth>
__device__ __forceinline__ bool store_codes(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t block) {
    constexpr uint32_t kColumns = mega_moe::kNumConsumerThreads / kCodePieces, kLoads = (kWidth + kColumns - 1) / kColumns;
    const uint32_t thread = place.warpgroup * 128 + place.thread, piece = thread % kCodePieces, column = thread / kCodePieces;
    const uint32_t staged = ptx::smem_address(c.ctx.smem.out) + piece_place<kCodePieces>(piece, column);
    uint4 codes[kLoads] = {};
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        if (kWidth % kColumns == 0 || column + kColumns * i < tile.num_rows) codes[i] = ptx::ld_shared_v4(staged + kColumns * 16 * i);
    }
    uint8_t* row = c.ctx.params.acts + uint64_t(tile.pool_row + column) * config::kActRowBytes + block * 128 + piece * 16;
    bool is_over = false;
    uint32_t fit = ~0u;  // bit 7 of each byte: so far columns of these 8 threads
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        const bool is_valid = column + kColumns * i < tile.num_rows;
        if (is_valid) *reinterpret_cast<uint4*>(row + uint64_t(i) * (kColumns * config::kActRowBytes)) = codes[i];
        const Look look(codes[i]);
        is_over |= look.is_over && is_valid;
        const uint32_t seen = __ballot_sync(~0u, look.is_seen || !is_valid);
        fit &= ((seen & 0x7F7F7F7Fu) + 0x7F7F7F7Fu) | seen;
    }
    return !__any_sync(~0u, is_over) && (fit & 0x80808080u) == 0x80808080u;
}

// E4M3. The scale is what was foreseen for the token, so that L2 need not multiply by it block by block, unless the block's values do not
// lie well in E4M3: that shows in the codes, and is seldom, so they are stored before it is known.
template <uint32_t kWidth>
__device__ __forceinline__ void finish_codes(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t block, const Pairs<kWidth>& pair) {
    using mega_moe::sync_consumers;
    put_codes<kWidth>(c, place, pair);
    sync_consumers();
    const uint32_t column = place.warpgroup * 128 + place.thread;
    if (column < tile.num_rows) {
        c.ctx.params.acts_sf[uint64_t(block) * c.ctx.params.pool_rows + tile.pool_row + column] = mega_moe::inverse_power(columns_of(c, place.warpgroup).scale(column));
    }
    if (!store_codes<kWidth>(c, tile, place, block) && place.lane == 0) atomicOr(&c.ctx.smem.may_not_fit, 1);
    sync_consumers();
    if (c.ctx.smem.may_not_fit == 0) return;
    reduce_amax<kWidth>(c, place, pair);
    sync_consumers();
    choose_scales(c, tile, place, block);
    sync_consumers();
    put_codes<kWidth>(c, place, pair);
    sync_consumers();
    store_codes<kWidth>(c, tile, place, block);
    sync_consumers();
}

// BF16: the pass's values to shared memory, 8 of a column's 128 in a piece: a warp has two.
template <uint32_t kWidth>
__device__ __forceinline__ void put_values(const Consumer& c, const Place& place, uint32_t pass, const Values<kWidth>& value) {
    // Place of the pair: 16 warp + 8 (row % 2) + 2 (row / 2) of the warpgroup's 64 (layout/token_order.cuh).
    constexpr uint32_t kPieces = 2 * kCodePieces;
    const uint32_t piece = 8 * place.warpgroup + 2 * place.warp + place.lane / 4 % 2, word = place.lane / 8;
#pragma unroll
    for (uint32_t j = 0; j < kWidth / 4; ++j) {
        const uint32_t column = j / 2 * 8 + place.lane % 4 * 2 + j % 2;
        uint8_t* at = c.ctx.smem.out + piece_place<kPieces>(piece, column) + word * 4;
        if constexpr (kM64 == 2) {
            *reinterpret_cast<uint32_t*>(at) = ptx::cvt_bf16x2(value[0][j], value[kM64 - 1][j]);
        } else {
            reinterpret_cast<uint16_t*>(at)[pass] = uint16_t(ptx::cvt_bf16x2(value[0][j], 0.0f));
        }
    }
}

// BF16: copies the tile's valid columns to the pool, 16 bytes a thread.
template <uint32_t kWidth>
__device__ __forceinline__ void store_values(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t block) {
    constexpr uint32_t kPieces = 2 * kCodePieces, kColumns = mega_moe::kNumConsumerThreads / kPieces, kLoads = (kWidth + kColumns - 1) / kColumns;
    const uint32_t thread = place.warpgroup * 128 + place.thread, piece = thread % kPieces, column = thread / kPieces;
    const uint32_t staged = ptx::smem_address(c.ctx.smem.out) + piece_place<kPieces>(piece, column);
    uint4 values[kLoads];
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        if (column + kColumns * i < tile.num_rows) values[i] = ptx::ld_shared_v4(staged + kColumns * 16 * i);
    }
    uint8_t* row = c.ctx.params.acts + uint64_t(tile.pool_row + column) * config::kActRowBytes + block * 256 + piece * 16;
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        if (column + kColumns * i < tile.num_rows) *reinterpret_cast<uint4*>(row + uint64_t(i) * (kColumns * config::kActRowBytes)) = values[i];
    }
}

template <uint32_t kWidth, uint32_t kBlock>
__device__ __forceinline__ void finish_block(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t pass, const Sums<kWidth>& sums) {
    const uint32_t block = tile.m_tile * config::kL1BlocksPerTile + kBlock;
    const mega_moe::Columns& columns = columns_of(c, place.warpgroup);
    Values<kWidth> value;
    Bias bias = {};
    load_bias(c, tile, place, pass, block, bias);
    if constexpr (kStashes) {
        if (pass == 0) {
            activate_block<kWidth, kBlock>(columns, bias, sums, value);
#pragma unroll
            for (uint32_t j = 0; j < kWidth / 4; j += 4) ptx::st_shared_f32x4(stashed(c, place, j), {value[0][j], value[0][j + 1], value[0][j + 2], value[0][j + 3]});
            return;
        }
    }
    if constexpr (config::kIsFp8) {
        Pairs<kWidth> pair;
        if constexpr (kStashes) {
#pragma unroll
            for (uint32_t j = 0; j < kWidth / 4; j += 4) {
                const float4 first = ptx::ld_shared_f32x4(stashed(c, place, j));
                pair[0][j] = first.x, pair[0][j + 1] = first.y, pair[0][j + 2] = first.z, pair[0][j + 3] = first.w;
            }
        }
        activate_block<kWidth, kBlock>(columns, bias, sums, value);
#pragma unroll
        for (uint32_t j = 0; j < kWidth / 4; ++j) {
            if constexpr (!kStashes) pair[0][j] = value[0][j];
            pair[1][j] = value[kM64 - 1][j];
        }
        finish_codes<kWidth>(c, tile, place, block, pair);
    } else {
        activate_block<kWidth, kBlock>(columns, bias, sums, value);
        put_values<kWidth>(c, place, pass, value);
        if (pass + 1 < config::kNumPasses) return;
        mega_moe::sync_consumers();
        store_values<kWidth>(c, tile, place, block);
        mega_moe::sync_consumers();
    }
}

template <uint32_t kWidth>
__device__ __forceinline__ void epilogue_l1(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const Sums<kWidth>& sums) {
    const Place place;
    if (pass == 0) {
        wait_columns(place);
        if constexpr (config::kIsFp8) make_scales<kWidth>(columns_of(c, place.warpgroup), place, tile.num_rows, [](float foreseen) { return mega_moe::inverse_power(foreseen); });
    }
    if (config::kIsFp8 && pass + 1 == config::kNumPasses) sync_warpgroup(place.warpgroup);  // the scales have been made
    finish_block<kWidth, 0>(c, tile, place, pass, sums);
    if constexpr (config::kL1BlocksPerTile > 1) finish_block<kWidth, 1>(c, tile, place, pass, sums);
    // Publish: the stores happen before the release through the last barrier; L2's loader fences the proxy on its side.
    if (pass + 1 == config::kNumPasses && place.warpgroup == 0 && place.thread == 0) {
        ptx::red_release_gpu_add(&c.ctx.params.l1_done[tile.token_tile], 1);
    }
}

}  // namespace roles
