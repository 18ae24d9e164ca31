// life, compiled with -lineinfo: .file and .loc lines.
extern "C" __global__ void kernel(const unsigned char* cells, unsigned char* out, int width, int height) {
    __shared__ unsigned char now[18][34], next[18][34];
    const int tx = threadIdx.x, ty = threadIdx.y, x0 = blockIdx.x * 32, y0 = blockIdx.y * 16;
    for (int y = ty; y < 18; y += blockDim.y)
        for (int x = tx; x < 34; x += blockDim.x) {
            const int gx = (x0 + x - 1 + width) % width, gy = (y0 + y - 1 + height) % height;
            now[y][x] = cells[gy * width + gx] & 1;
            next[y][x] = now[y][x];
        }
    __syncthreads();
    for (int generation = 0; generation < 4; ++generation) {
        int live = 0;
        for (int dy = 0; dy < 3; ++dy)
            for (int dx = 0; dx < 3; ++dx)
                if (dx != 1 || dy != 1) live += now[ty + dy][tx + dx];
        next[ty + 1][tx + 1] = live == 3 || (live == 2 && now[ty + 1][tx + 1]);
        if (__syncthreads_or(next[ty + 1][tx + 1]) == 0) break;
        now[ty + 1][tx + 1] = next[ty + 1][tx + 1] ^ (__syncthreads_count(live > 3) & 1);
        __syncthreads();
    }
    out[(y0 + ty) * width + x0 + tx] = now[ty + 1][tx + 1];
}
