// What both epilogues need of a tile's columns (its tokens), and how they put results in rows of a token.
#pragma once
#include "mega_moe/context_sm90.cuh"
#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

__device__ __forceinline__ mega_moe::Columns& columns_of(const Consumer& c, uint32_t warpgroup) { return c.ctx.smem.columns[warpgroup]; }

// A thread's place among the consumers, read anew: where the loop has no register to spare, one that lived through it comes back from
// local memory, which is as far away as L2.
struct Place {
    uint32_t warpgroup, thread, warp, lane;  // the thread in the warpgroup, the warp there

    __device__ __forceinline__ Place() {
        const uint32_t consumer = ptx::thread_in_block() - config::kFirstConsumerThread;
        warpgroup = consumer / 128, thread = consumer % 128, warp = thread / 32, lane = consumer % 32;
    }
};

// A barrier of one warpgroup alone.
__device__ __forceinline__ void sync_warpgroup(uint32_t warpgroup) { ptx::barrier_sync(mega_moe::kFirstWarpgroupBarrier + warpgroup, 128); }

// Starts the copies of a tile's columns, before the MMAs that hide the way: each warpgroup has its own, so that it need not wait for
// the other. The last tile's are no longer read: its epilogue read them before its last barrier.
template <bool kIsL2>
__device__ __forceinline__ void fetch_columns(const Consumer& c, const mega_moe::Tile& tile) {
    const mega_moe::Params& params = c.ctx.params;
    const Place place;
    mega_moe::Columns& columns = columns_of(c, place.warpgroup);
    wait_stage(c);  // whoever loaded the tile's rows has seen what dispatch wrote beside them
    for (uint32_t column = place.thread; column < tile.num_rows; column += 128) {
        const uint32_t row = tile.pool_row + column;
        if constexpr (config::kIsFp8) ptx::cp_async_4(ptx::smem_address(&columns.scale(column)), params.routed_sf + row);
        if constexpr (kIsL2) {
            ptx::cp_async_4(ptx::smem_address(&columns.slot[column]), params.routed + row);
            ptx::cp_async_4(ptx::smem_address(&columns.weight(column)), params.routed_weights + row);
        }
    }
    if (place.thread < (kIsL2 ? 1 : 2)) {
        const float* alphas = kIsL2 ? params.l2_alphas + tile.expert : params.l1_alphas + 2 * tile.expert;
        ptx::cp_async_4(ptx::smem_address(&columns.alpha[place.thread]), alphas + place.thread);
    }
    if constexpr (config::kIsFp8) {
        const float* sizes = reinterpret_cast<const float*>(params.forecast + tile.expert);
        if (place.thread < 4) ptx::cp_async_4(ptx::smem_address(&columns.forecast) + 4 * place.thread, sizes + place.thread);
    }
}

// Before the first look at them.
__device__ __forceinline__ void wait_columns(const Place& place) {
    ptx::cp_async_wait_all();
    sync_warpgroup(place.warpgroup);
}

// E4M3, one thread a column: `make` turns the scale foreseen for the column's activations into what values or sums are multiplied by. Others
// may read it after the next barrier of the warpgroup.
template <uint32_t kWidth, typename Make>
__device__ __forceinline__ void make_scales(mega_moe::Columns& columns, const Place& place, uint32_t num_rows, Make&& make) {
    const mega_moe::ActsForecast forecast = columns.forecast;
#pragma unroll
    for (uint32_t first = 0; first < kWidth; first += 128) {
        const uint32_t column = first + place.thread;
        if (column < num_rows) columns.scale(column) = make(mega_moe::foresee_acts_scale(forecast, columns.scale(column), 1.0f));
    }
}

// Results on their way out lie in pieces of 16 bytes, 8 rows of a column each: by piece, of which a tile has kPieces in `out`, and in
// it by column. Columns are XORed with the piece, so that neither 8 columns of a piece nor 8 pieces of a column meet in a bank.
template <uint32_t kPieces>
__device__ __forceinline__ uint32_t piece_place(uint32_t piece, uint32_t column) {
    return piece * (config::kOutBytes / kPieces) + (column ^ piece % 8) * 16;
}

// Stores this warp's 16-bit elements of all columns: matrix i is columns 8 i .. 8 i + 7 of the warp's 8 rows, which become `piece`.
template <uint32_t kWidth, uint32_t kPieces>
__device__ __forceinline__ void store_columns(uint32_t out, uint32_t piece, uint32_t lane, const uint32_t (&matrices)[kWidth / 8]) {
    constexpr uint32_t kGroups = kWidth / 8, kFours = kGroups / 4 * 4;
    const uint32_t place = out + piece_place<kPieces>(piece, lane);  // of matrices 0 .. 3
#pragma unroll
    for (uint32_t i = 0; i < kFours; i += 4) ptx::stmatrix_trans<4>(place + i * 128, matrices + i);
    if constexpr (kGroups % 4 >= 2) ptx::stmatrix_trans<2>(out + piece_place<kPieces>(piece, 8 * kFours + lane % 16), matrices + kFours);
    if constexpr (kGroups % 2 == 1) ptx::stmatrix_trans<1>(out + piece_place<kPieces>(piece, 8 * (kGroups - 1) + lane % 8), matrices + kGroups - 1);
}

}  // namespace roles
