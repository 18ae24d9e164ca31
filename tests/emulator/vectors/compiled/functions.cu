// Functions that are called: structures by value and by pointer, results in structures, calls in divergent code.
struct Pair { int a; short b; unsigned char c[5]; double d; };
__device__ __noinline__ Pair swapped(Pair p, int k) {
    Pair q = p;
    q.a = p.b * k;
    q.b = static_cast<short>(p.a >> 3);
    q.c[k & 3] = p.c[4] + 1;
    q.d = p.d + q.a;
    return q;
}
__device__ __noinline__ void bump(int* values, int count) {
    for (int i = 0; i < count; ++i) values[i] += values[(i + 1) % 6] ^ i;
}
__device__ __noinline__ float blend(float x, float y, bool first) { return first ? x - y : y * 0.5f; }
extern "C" __global__ void kernel(const int* in, int* out, double* sums) {
    const int t = threadIdx.x;
    Pair p{in[t], static_cast<short>(in[t] >> 7), {1, 2, 3, 4, static_cast<unsigned char>(t)}, 0.5 * t};
    int values[6] = {t, in[t], 2, 3, 4, in[t] >> 4};
    for (int i = 0; i < 3; ++i) {
        if ((in[t] >> i) & 1) p = swapped(p, i + t);
        else bump(values, 1 + (t + i) % 6);
    }
    const float f = blend(static_cast<float>(values[0] & 0xffff), static_cast<float>(p.a & 0xff), t & 4);
    out[t] = p.a + p.b + p.c[0] + p.c[3] + values[t % 6] + static_cast<int>(f);
    sums[t] = p.d;
}
