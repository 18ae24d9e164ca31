// Ordinary float arithmetic without contraction: sums, quotients, roots, clamps, conversions, comparisons.
extern "C" __global__ void kernel(const float* x, const double* y, float* out, double* wide, int* whole) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float a = x[i], b = x[i ^ 1];
    float p = 0.25f;
    for (int k = 0; k < 5; ++k) p = p * a * 0.125f + (b - (float)k);
    out[i * 4 + 0] = p / (1.0f + fabsf(b));
    out[i * 4 + 1] = sqrtf(fabsf(p)) + fminf(a, fmaxf(b, -2.0f));
    out[i * 4 + 2] = isnan(a) ? copysignf(3.0f, b) : rintf(a * 7.0f) - truncf(b);
    out[i * 4 + 3] = a < b ? floorf(a) : (a > b ? ceilf(a) : 0.0f);
    const double s = y[i] + (double)p, c = y[i] * y[i ^ 3];
    wide[i * 2 + 0] = (s - y[i]) - (double)p;
    wide[i * 2 + 1] = sqrt(fabs(c)) / (fabs(s) + 1.0);
    whole[i * 3 + 0] = (int)a + __float2int_rd(b);
    whole[i * 3 + 1] = (int)(unsigned)(long long)y[i];
    whole[i * 3 + 2] = __float_as_int(__fmaf_rn(a, b, p)) ^ __float_as_int(__fdividef(1.0f, 2.0f));
}
