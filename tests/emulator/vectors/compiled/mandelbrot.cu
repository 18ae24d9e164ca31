// Iterations until escape: every lane leaves the loop on its own.
extern "C" __global__ void kernel(int* out, float left, float top, float step) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y, width = gridDim.x * blockDim.x;
    const float cx = left + step * x, cy = top + step * y;
    float zx = 0.0f, zy = 0.0f;
    int rounds = 0;
    while (rounds < 60 && zx * zx + zy * zy <= 4.0f) {
        const float next = zx * zx - zy * zy + cx;
        zy = 2.0f * zx * zy + cy;
        zx = next;
        ++rounds;
    }
    out[y * width + x] = rounds;
}
