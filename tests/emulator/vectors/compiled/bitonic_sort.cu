// Sorts 512 keys with their positions in shared memory; equal keys are ordered by position.
extern "C" __global__ void kernel(const int* keys, int* sorted, int* order) {
    __shared__ int key[512], position[512];
    for (int i = threadIdx.x; i < 512; i += blockDim.x) {
        key[i] = keys[i] & 63;
        position[i] = i;
    }
    __syncthreads();
    for (int size = 2; size <= 512; size <<= 1) {
        for (int step = size >> 1; step > 0; step >>= 1) {
            for (int i = threadIdx.x; i < 512; i += blockDim.x) {
                const int other = i ^ step;
                if (other > i) {
                    const bool up = (i & size) == 0;
                    const bool greater = key[i] > key[other] || (key[i] == key[other] && position[i] > position[other]);
                    if (greater == up) {
                        const int k = key[i], p = position[i];
                        key[i] = key[other], position[i] = position[other];
                        key[other] = k, position[other] = p;
                    }
                }
            }
            __syncthreads();
        }
    }
    for (int i = threadIdx.x; i < 512; i += blockDim.x) {
        sorted[i] = key[i];
        order[i] = position[i];
    }
}
