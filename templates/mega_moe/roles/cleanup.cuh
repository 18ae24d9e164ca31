// Role: cleanup (the consumer warpgroups, last)
// Waits for:  this block's last look at any counter
// Produces:   the last block to leave sets every counter back to zero for the next launch
// Registers:  config::kConsumerRegisters
#pragma once
#include "mega_moe/context.cuh"

namespace roles {

__device__ __forceinline__ void cleanup(const mega_moe::Context& ctx, uint32_t consumer_thread, uint32_t* is_last) {
    const mega_moe::Params& params = ctx.params;
    // Loaders have no counter left to read: their last tile's data was consumed before combine.
    mega_moe::sync_consumers();
    if (consumer_thread == 0) *is_last = ptx::atom_acq_rel_gpu_add(params.exited, 1) == gridDim.x - 1;
    mega_moe::sync_consumers();
    if (*is_last == 0) return;
    mega_moe::reset_counters(ctx, consumer_thread);
}

}  // namespace roles
