// A prefix sum over eight blocks in one pass: each block publishes its sum and looks back at those before it.
extern "C" __global__ void kernel(const unsigned* in, unsigned* out, volatile unsigned* flags, volatile unsigned* totals, volatile unsigned* prefixes) {
    __shared__ unsigned warp_sums[8], before;
    const unsigned t = threadIdx.x, lane = t & 31, warp = t >> 5, block = blockIdx.x;
    unsigned sum = in[block * 256 + t];
    for (int step = 1; step < 32; step <<= 1) {
        const unsigned other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        unsigned s = lane < 8 ? warp_sums[lane] : 0;
        for (int step = 1; step < 8; step <<= 1) {
            const unsigned other = __shfl_up_sync(~0u, s, step);
            if (lane >= step) s += other;
        }
        if (lane < 8) warp_sums[lane] = s;
    }
    __syncthreads();
    if (t == 0) {
        const unsigned total = warp_sums[7];
        totals[block] = total;
        __threadfence();
        flags[block] = 1;
        unsigned running = 0;
        for (int from = static_cast<int>(block) - 1; from >= 0; --from) {
            unsigned flag;
            while ((flag = flags[from]) == 0) {}
            __threadfence();
            if (flag == 2) {
                running += prefixes[from];
                break;
            }
            running += totals[from];
        }
        prefixes[block] = running + total;
        __threadfence();
        flags[block] = 2;
        before = running;
    }
    __syncthreads();
    out[block * 256 + t] = sum + (warp ? warp_sums[warp - 1] : 0) + before;
}
