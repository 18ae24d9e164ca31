// Tiles on their way from the scheduler's warp to the loaders and consumers of its block.
//
// One warp works out which tile comes next, divisions and all, while the others are busy with those before; and what a tile is stays in shared
// memory, so that consumers need no registers for it during their MMAs.
#pragma once
#include "comm/wait.cuh"
#include "config.cuh"
#include "ptx/mbarrier.cuh"
#include "types.cuh"

namespace mega_moe {

struct alignas(16) Tile {
    uint32_t expert;      // local
    uint32_t m_tile;      // block of kBlockM weight rows
    uint32_t token_tile;  // over all experts: the index of its counter
    uint32_t pool_row;    // first row in the pool, where each token tile has kBlockN rows of its own
    uint32_t num_rows;    // valid ones of kBlockN
    uint32_t width;       // columns that are multiplied: num_rows rounded up to an MMA width
};

constexpr uint32_t kQueueTiles = 4;  // loaders are ahead of consumers by up to two tiles, the scheduler by one more
constexpr uint32_t kQueueReaders = config::kNumConsumerWarpgroups * 4 + 2;  // consumer warps, and the two loaders

struct TileQueue {
    Tile tiles[kQueueTiles];
    uint64_t full[kQueueTiles];
    uint64_t empty[kQueueTiles];

    __device__ __forceinline__ void init() {
        for (uint32_t i = 0; i < kQueueTiles; ++i) {
            ptx::mbarrier_init(ptx::smem_address(&full[i]), 1);
            ptx::mbarrier_init(ptx::smem_address(&empty[i]), kQueueReaders);
        }
    }
};

// A role's place in the queue: the number of tiles it has seen.
struct QueuePlace {
    uint32_t count = 0;

    __device__ __forceinline__ uint32_t index() const { return count % kQueueTiles; }
    __device__ __forceinline__ uint32_t phase() const { return count / kQueueTiles % 2; }
};

// Scheduler, one thread: hands on the next tile.
__device__ __forceinline__ void push_tile(const comm::Watchdog& watchdog, TileQueue& queue, QueuePlace& place, const Tile& tile) {
    comm::wait_barrier(watchdog, ptx::smem_address(&queue.empty[place.index()]), place.phase() ^ 1, comm::WaitFor::kTilePlace, place.index());
    queue.tiles[place.index()] = tile;
    ptx::mbarrier_arrive(ptx::smem_address(&queue.full[place.index()]));
    ++place.count;
}

// Loaders and consumers: the next tile; it stays where it is until it is released.
__device__ __forceinline__ const Tile& wait_tile(const comm::Watchdog& watchdog, TileQueue& queue, const QueuePlace& place) {
    comm::wait_barrier(watchdog, ptx::smem_address(&queue.full[place.index()]), place.phase(), comm::WaitFor::kTile, place.index());
    return queue.tiles[place.index()];
}

// A loader's thread, or a consumer's warp by one lane: has no more use for the tile.
__device__ __forceinline__ void release_tile(TileQueue& queue, QueuePlace& place, bool is_elected) {
    ptx::mbarrier_arrive_if(is_elected, ptx::smem_address(&queue.empty[place.index()]));
    ++place.count;
}

}  // namespace mega_moe
