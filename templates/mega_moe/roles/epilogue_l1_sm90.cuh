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

template <uint32_t kWidth, uint32_t kBlock>
__device__ __forceinline__ void activate_block(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const Sums<kWidth>& sums, Values<kWidth>& value) {
    const mega_moe::Params& params = c.ctx.params;
    const mega_moe::Columns& columns = columns_of(c);
    const uint32_t thread = c.thread_now(), lane = thread % 32, warp = thread / 32;
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) {
        const uint32_t m64 = c.m64(pass, m);
        float bias[2] = {0.0f, 0.0f};
        if (params.l1_bias != nullptr) {
            const float* row = params.l1_bias + uint64_t(tile.expert) * config::kL1Rows;
            const uint32_t in_block = m64 / 2 * 64 + lane / 8 * 16 + warp * 4 + lane / 4 % 2 * 2 + m64 % 2;
            const uint32_t i = (tile.m_tile * config::kL1BlocksPerTile + kBlock) * 128 + in_block;
            bias[0] = row[i];
            if constexpr (config::kIsGated) bias[1] = row[config::kIntermediatePadded + i];
        }
#pragma unroll
        for (uint32_t j = 0; j < kWidth / 4; j += 2) {
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i) {
                const uint32_t r = j * 2 + i;  // half 0; half 1 is r + 2
                if constexpr (config::kIsGated) {
                    value[m][j + i] = mega_moe::activate(fmaf(sums[m][r], columns.alpha[0], bias[0]), fmaf(sums[m][r + 2], columns.alpha[1], bias[1]));
                } else {
                    value[m][j + i] = mega_moe::activate(fmaf(sums[m][r + 2 * kBlock], columns.alpha[0], bias[0]));
                }
            }
        }
    }
}

constexpr bool kStashes = config::kIsFp8 && config::kNumPasses > 1;
static_assert(config::kNumPasses == 1 || (config::kNumPasses == 2 && config::kL1BlocksPerTile == 1), "one stash, of one block");

// The first pass's values wait for the second's in shared memory, each thread's in a column of its own.
__device__ __forceinline__ float& stashed(const Consumer& c, uint32_t j) {
    return reinterpret_cast<float*>(c.ctx.smem.out)[j * mega_moe::kNumConsumerThreads + c.warpgroup * 128 + c.thread];
}

// The tile's activations on their way to the pool.
__device__ __forceinline__ uint8_t* acts_tile(const Consumer& c) { return kStashes ? c.ctx.smem.codes : c.ctx.smem.out; }

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

// Largest magnitude of each column over the block's 128 values, in smem.amax (bits of non-negative floats order like integers).
template <uint32_t kWidth>
__device__ __forceinline__ void reduce_amax(const Consumer& c, const Pairs<kWidth>& pair) {
    const uint32_t lane = c.thread % 32;
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
        if (is_mine) atomicMax(&c.ctx.smem.amax[j / 2 * 8 + lane % 4 * 2 + j % 2], __float_as_uint(largest[i]));
    }
}

// One thread a column: its scale factor to the pool, the reciprocal to all consumers, and the maximum starts over. The factor is what was
// foreseen for the token, so that L2 need not multiply by it block by block, unless the block's values would not lie well in E4M3.
__device__ __forceinline__ void scale_columns(const Consumer& c, const mega_moe::Tile& tile, uint32_t block) {
    mega_moe::SharedStorage& smem = c.ctx.smem;
    const uint32_t column = c.warpgroup * 128 + c.thread;
    if (column < config::kBlockN) {
        const mega_moe::Columns& columns = columns_of(c);
        const float amax = __uint_as_float(smem.amax[column]), foreseen = mega_moe::foresee_acts_scale(columns.forecast, columns.factor[column], 1.0f);
        const bool fits = amax == 0.0f || (amax >= config::kLeastForeseen * foreseen && amax <= 448.0f * foreseen);
        const float scale = fits ? foreseen : mega_moe::power_of_two(fmaxf(amax, config::kMinAmax) * (2.0f / 448.0f));
        smem.inverse_scale[column] = 1.0f / scale;
        smem.amax[column] = 0;
        if (column < tile.num_rows) {
            c.ctx.params.acts_sf[uint64_t(block) * c.ctx.params.pool_rows + tile.pool_row + column] = scale;
            if (!fits) ptx::st_relaxed_gpu(&c.ctx.params.has_own_sf[tile.token_tile], 1);
        }
    }
    mega_moe::sync_consumers();
}

// E4M3: the pairs of all columns to the shared tile [column][128].
template <uint32_t kWidth>
__device__ __forceinline__ void put_codes(const Consumer& c, const Pairs<kWidth>& pair) {
    const uint32_t thread = c.thread_now(), lane = thread % 32, warp = thread / 32;
    uint32_t matrices[kWidth / 8];
#pragma unroll
    for (uint32_t i = 0; i < kWidth / 8; ++i) {
        const float2 inverse = *reinterpret_cast<const float2*>(&c.ctx.smem.inverse_scale[8 * i + lane % 4 * 2]);
        matrices[i] = uint32_t(ptx::cvt_e4m3x2(pair[0][2 * i] * inverse.x, pair[1][2 * i] * inverse.x)) |
                      uint32_t(ptx::cvt_e4m3x2(pair[0][2 * i + 1] * inverse.y, pair[1][2 * i + 1] * inverse.y)) << 16;
    }
    store_columns<kWidth>(ptx::smem_address(acts_tile(c)), 4 * c.warpgroup + warp, matrices);
}

// BF16: the pass's values to the shared tile [column][2][64]: a warpgroup's 64 values are the 128 bytes of its half.
template <uint32_t kWidth>
__device__ __forceinline__ void put_values(const Consumer& c, uint32_t pass, const Values<kWidth>& value) {
    const uint32_t thread = c.thread_now(), lane = thread % 32, warp = thread / 32;
    // Place of the pair: 16 warp + 8 (row % 2) + 2 (row / 2) of the 64 (layout/token_order.cuh).
    const uint32_t piece = 2 * warp + lane / 4 % 2, word = lane / 8;
    uint8_t* half = acts_tile(c) + c.warpgroup * (config::kBlockN * 128);
#pragma unroll
    for (uint32_t j = 0; j < kWidth / 4; ++j) {
        const uint32_t column = j / 2 * 8 + lane % 4 * 2 + j % 2;
        uint8_t* place = half + column_piece(column, piece) + word * 4;
        if constexpr (kM64 == 2) {
            *reinterpret_cast<uint32_t*>(place) = ptx::cvt_bf16x2(value[0][j], value[kM64 - 1][j]);
        } else {
            reinterpret_cast<uint16_t*>(place)[pass] = uint16_t(ptx::cvt_bf16x2(value[0][j], 0.0f));
        }
    }
}

// Copies the tile's valid columns to the pool, 16 bytes a thread.
__device__ __forceinline__ void store_block(const Consumer& c, const mega_moe::Tile& tile, uint32_t block) {
    constexpr uint32_t kBytes = 128 * config::kActBytes, kPieces = kBytes / 16;
    const uint32_t thread = c.warpgroup * 128 + c.thread;
    for (uint32_t i = thread; i < tile.num_rows * kPieces; i += mega_moe::kNumConsumerThreads) {
        const uint32_t column = i / kPieces, piece = i % kPieces;
        uint8_t* row = c.ctx.params.acts + uint64_t(tile.pool_row + column) * config::kActRowBytes + block * kBytes;
        const uint32_t place = ptx::smem_address(acts_tile(c)) + piece / 8 * (config::kBlockN * 128) + column_piece(column, piece % 8);
        reinterpret_cast<uint4*>(row)[piece] = ptx::ld_shared_v4(place);
    }
}

template <uint32_t kWidth, uint32_t kBlock>
__device__ __forceinline__ void finish_block(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const Sums<kWidth>& sums) {
    using namespace mega_moe;
    const uint32_t block = tile.m_tile * config::kL1BlocksPerTile + kBlock;
    Values<kWidth> value;
    activate_block<kWidth, kBlock>(c, tile, pass, sums, value);
    if constexpr (kStashes) {
        if (pass == 0) {
#pragma unroll
            for (uint32_t j = 0; j < kWidth / 4; ++j) stashed(c, j) = value[0][j];
            return;
        }
    }
    if constexpr (config::kIsFp8) {
        Pairs<kWidth> pair;
#pragma unroll
        for (uint32_t j = 0; j < kWidth / 4; ++j) {
            pair[0][j] = kStashes ? stashed(c, j) : value[0][j];
            pair[1][j] = value[kM64 - 1][j];
        }
        reduce_amax<kWidth>(c, pair);
        sync_consumers();
        scale_columns(c, tile, block);
        put_codes<kWidth>(c, pair);
    } else {
        put_values<kWidth>(c, pass, value);
        if (pass + 1 < config::kNumPasses) return;
    }
    sync_consumers();
    store_block(c, tile, block);
    sync_consumers();
}

template <uint32_t kWidth>
__device__ __forceinline__ void epilogue_l1(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const Sums<kWidth>& sums) {
    if (pass == 0) wait_columns(c);
    finish_block<kWidth, 0>(c, tile, pass, sums);
    if constexpr (config::kL1BlocksPerTile > 1) finish_block<kWidth, 1>(c, tile, pass, sums);
    // Publish: the stores happen before the release through the last barrier; L2's loader fences the proxy on its side.
    if (pass + 1 == config::kNumPasses && c.warpgroup == 0 && c.thread == 0) {
        ptx::red_release_gpu_add(&c.ctx.params.l1_done[tile.token_tile], 1);
    }
}

}  // namespace roles
