// Role: epilogue (two warpgroups, which take tiles in turns), what L1 and L2 have in common
// Waits for:  an accumulator's full barrier
// Produces:   per column of the tile: slot, scales and factors in shared memory; releases accumulators on the even CTA's barrier
// Registers:  those of the launch
//
// Thread t of a warpgroup reads lanes 32 (t / 32) .. of tensor memory: its warp's quarter of the tile's weight rows.
#pragma once
#include "mega_moe/context_sm100.cuh"
#include "ptx/cluster.cuh"
#include "ptx/tcgen05.cuh"

namespace roles {

struct Epilogue {
    const mega_moe::Context& ctx;
    mega_moe::EpilogueStorage& smem;  // the warpgroup's
    uint32_t warpgroup;
    uint32_t thread;  // in the warpgroup
    uint32_t tmem;    // this warp's lanes
    mega_moe::AccumCursor accum;

    __device__ __forceinline__ void sync() const { ptx::barrier_sync(mega_moe::kFirstEpilogueBarrier + warpgroup, 128); }

    __device__ __forceinline__ uint32_t accum_address() const { return tmem + accum.index * config::kBlockN; }

    __device__ __forceinline__ void wait_accum() const {
        comm::wait_barrier(ctx.watchdog, ptx::smem_address(&ctx.smem.accum_full[accum.index]), accum.phase, comm::WaitFor::kAccumFull, accum.index);
        ptx::tcgen05_fence_after_thread_sync();
    }

    // One arrival a warp, after its last load.
    __device__ __forceinline__ void release_accum() const {
        ptx::tcgen05_fence_before_thread_sync();
        __syncwarp();
        if (thread % 32 != 0) return;
        const uint32_t barrier = ptx::smem_address(&ctx.smem.accum_empty[accum.index]);
        if constexpr (config::kCtaGroup == 1) {
            ptx::mbarrier_arrive(barrier);
        } else {
            ptx::mbarrier_arrive_cluster(ptx::map_to_cta(barrier, 0));
        }
    }
};

// What the tile's columns need, in shared memory. factor: the top-k weight, in L2 and before requantisation also in L1, else 1.
// L1: x's second-level scale, and the scale that its activations get. L2: that scale again.
__device__ __forceinline__ void fetch_columns(const Epilogue& e, const mega_moe::Tile& tile) {
    const mega_moe::Params& params = e.ctx.params;
    for (uint32_t column = e.thread; column < config::kBlockN; column += 128) {
        const bool is_valid = column < tile.num_rows;
        const uint32_t row = tile.row + column;
        const float token_scale = config::kHasTokenScales && is_valid ? params.routed_sf[row] : 1.0f;
        e.smem.slot[column] = is_valid ? params.routed[row] : 0;
        const float factor = is_valid && (tile.is_l2 || config::kWeighsBeforeRequant) ? params.routed_weights[row] : 1.0f;
        e.smem.factor[column] = factor;
        e.smem.token_scale[column] = token_scale;
        e.smem.acts_scale[column] = config::kHasTokenScales ? mega_moe::foresee_acts_scale(params.forecast[tile.expert], token_scale, config::kWeighsBeforeRequant ? factor : 1.0f) : 1.0f;
    }
    e.sync();
}

}  // namespace roles
