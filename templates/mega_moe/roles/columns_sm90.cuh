// What both epilogues need of a tile's columns (its tokens), and how they put results in rows of a token.
#pragma once
#include "mega_moe/context_sm90.cuh"
#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

__device__ __forceinline__ mega_moe::Columns& columns_of(const Consumer& c) { return c.ctx.smem.columns[c.warpgroup]; }

// A barrier of this warpgroup alone.
__device__ __forceinline__ void sync_warpgroup(const Consumer& c) { ptx::barrier_sync(mega_moe::kFirstWarpgroupBarrier + c.warpgroup, 128); }

// Starts the copies of a tile's columns, before the MMAs that hide the way: each warpgroup has its own, so that it need not wait for
// the other. The last tile's are no longer read: its epilogue ended with a barrier.
template <bool kIsL2>
__device__ __forceinline__ void fetch_columns(const Consumer& c, const mega_moe::Tile& tile) {
    const mega_moe::Params& params = c.ctx.params;
    mega_moe::Columns& columns = columns_of(c);
    wait_stage(c);  // whoever loaded the tile's rows has seen what dispatch wrote beside them
    for (uint32_t column = c.thread; column < tile.num_rows; column += 128) {
        const uint32_t row = tile.pool_row + column;
        if constexpr (kIsL2) {
            ptx::cp_async_4(ptx::smem_address(&columns.slot[column]), params.routed + row);
            ptx::cp_async_4(ptx::smem_address(&columns.factor[column]), params.routed_weights + row);
            if constexpr (config::kIsFp8) ptx::cp_async_4(ptx::smem_address(&columns.scale[column]), params.routed_sf + row);
        } else if constexpr (config::kHasTokenScales) {
            ptx::cp_async_4(ptx::smem_address(&columns.factor[column]), params.routed_sf + row);
        }
    }
    if (c.thread < (kIsL2 ? 1 : 2)) {
        const float* alphas = kIsL2 ? params.l2_alphas + tile.expert : params.l1_alphas + 2 * tile.expert;
        ptx::cp_async_4(ptx::smem_address(&columns.alpha[c.thread]), alphas + c.thread);
    }
    if constexpr (config::kIsFp8) {
        if (c.thread < 4) ptx::cp_async_4(ptx::smem_address(&columns.forecast) + 4 * c.thread, reinterpret_cast<const float*>(params.forecast + tile.expert) + c.thread);
    }
}

// Before the first look at them.
__device__ __forceinline__ void wait_columns(const Consumer& c) {
    ptx::cp_async_wait_all();
    sync_warpgroup(c);
}

// Byte offset of 16-byte piece `piece` of a column's 128 bytes: pieces are XORed with the column, so that neither 8 columns of a piece
// nor 8 pieces of a column meet in a bank.
__device__ __forceinline__ uint32_t column_piece(uint32_t column, uint32_t piece) { return column * 128 + (piece ^ column % 8) * 16; }

// Stores this warp's 16-bit elements of all columns: matrix i is columns 8 i .. 8 i + 7 of the warp's 8 rows, which become `piece` of
// the columns' 128 bytes at `columns`.
template <uint32_t kWidth>
__device__ __forceinline__ void store_columns(uint32_t columns, uint32_t piece, const uint32_t (&matrices)[kWidth / 8]) {
    const uint32_t lane = threadIdx.x % 32;
    constexpr uint32_t kGroups = kWidth / 8, kFours = kGroups / 4 * 4;
#pragma unroll
    for (uint32_t i = 0; i < kFours; i += 4) ptx::stmatrix_trans<4>(columns + column_piece(8 * i + lane, piece), matrices + i);
    if constexpr (kGroups % 4 >= 2) ptx::stmatrix_trans<2>(columns + column_piece(8 * kFours + lane % 16, piece), matrices + kFours);
    if constexpr (kGroups % 2 == 1) ptx::stmatrix_trans<1>(columns + column_piece(8 * (kGroups - 1) + lane % 8, piece), matrices + kGroups - 1);
}

}  // namespace roles
