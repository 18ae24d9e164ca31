// The order of K in which tokens are stored for wgmma with weights in registers (docs/layouts.md, "K order of tokens").
//
// In the A fragment a lane holds, for each of its rows, k = 16 h + 4 t + j of a k32 step: pieces of two 16-groups, so natural
// order would need a scale factor for each register. K's order is free as long as both operands agree, so inside each block of
// 64 lane t owns the whole 16-group t:
//
//     E4M3   k = 16 t + 8 s + 4 h + j   is stored at   p = 32 s + 16 h + 4 t + j     s = k32 step, h = register half
//     BF16   k = 16 t + 4 s + 2 h + j   is stored at   p = 16 s +  8 h + 2 t + j     s = k16 step
//
// Runs of kRun elements (4 bytes) stay together, so writers move 32-bit words.
#pragma once
#include "types.cuh"

namespace layout {

template <bool kIsFp8>
struct TokenOrder {
    static constexpr uint32_t kBlock = 64;
    static constexpr uint32_t kRun = kIsFp8 ? 4 : 2;

    // Stored position of natural index k.
    __device__ __forceinline__ static constexpr uint32_t position(uint32_t k) {
        const uint32_t block = k / kBlock * kBlock, t = k % kBlock / 16, j = k % kRun;
        const uint32_t h = k / kRun % 2, s = k % 16 / (2 * kRun);
        return block + 8 * kRun * s + 4 * kRun * h + kRun * t + j;
    }
};

static_assert(TokenOrder<true>::position(16 * 3 + 8 * 1 + 4 * 1 + 2) == 32 * 1 + 16 * 1 + 4 * 3 + 2);
static_assert(TokenOrder<false>::position(16 * 3 + 4 * 2 + 2 * 1 + 1) == 16 * 2 + 8 * 1 + 2 * 3 + 1);

}  // namespace layout
