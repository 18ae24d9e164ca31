// Counters spread over the shared memory of a cluster of four blocks, reached through mapped pointers.
extern "C" __global__ void __cluster_dims__(4, 1, 1) kernel(const unsigned* in, unsigned* out) {
    __shared__ unsigned counts[64];
    const unsigned t = threadIdx.x, rank = __clusterRelativeBlockRank();
    if (t < 64) counts[t] = rank * 1000;
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
    for (int i = 0; i < 4; ++i) {
        const unsigned value = in[(blockIdx.x * 4 + i) * 128 + t] & 255;
        unsigned* remote = static_cast<unsigned*>(__cluster_map_shared_rank(counts + (value & 63), value >> 6));
        atomicAdd(remote, __cluster_query_shared_rank(remote) + 1);
    }
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
    if (t < 64) out[blockIdx.x * 64 + t] = counts[t];
}
