// 64-bit quotients, high products, 128-bit sums, rotations and bit tricks.
extern "C" __global__ void kernel(const unsigned long long* x, unsigned long long* out) {
    const int t = threadIdx.x;
    const unsigned long long a = x[t], b = x[t ^ 1] | 1, n = 64;
    out[0 * n + t] = a / b + a % (b >> 17 | 1);
    out[1 * n + t] = static_cast<unsigned long long>(static_cast<long long>(a) / static_cast<long long>(b >> 31 | 1));
    out[2 * n + t] = __umul64hi(a, b) ^ static_cast<unsigned long long>(__mul64hi(a, b));
    const unsigned __int128 w = static_cast<unsigned __int128>(a) * b + (static_cast<unsigned __int128>(b) << 60);
    out[3 * n + t] = static_cast<unsigned long long>(w >> 37) ^ static_cast<unsigned long long>(w);
    out[4 * n + t] = a << (b & 63) | a >> (-b & 63);
    out[5 * n + t] = __brevll(a) + __popcll(b) + __clzll(a) + __ffsll(b);
    out[6 * n + t] = __byte_perm(a, b, t * 0x1111) + __dp4a(static_cast<int>(a), static_cast<int>(b), t);
    out[7 * n + t] = __usad(a, b, t) + __vmaxs2(a, b) + __vminu2(b, t);
    out[8 * n + t] = static_cast<unsigned>(a) / 10u * 7u + static_cast<int>(a) % 13 + static_cast<short>(a) / 3;
    out[9 * n + t] = __funnelshift_l(a, b, t) + __funnelshift_rc(a, b, t) + __uhadd(a, b) + __mulhi(static_cast<int>(a), static_cast<int>(b));
}
