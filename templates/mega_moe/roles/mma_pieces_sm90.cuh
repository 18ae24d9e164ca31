// Role: mma, of wide tiles in E4M3: a stage is multiplied in pieces of its columns
// Waits for, produces, registers: as in mma_sm90.cuh
//
// All weights of a stage are decoded while the stage before is multiplied. A piece's sums have one of two sets of registers: while its
// MMAs run, the sums of the piece before are promoted, and a part of the next stage's weights is decoded. So promotion after each stage
// takes the registers of two pieces beside the total, and not those of a whole tile, and the tensor core always has a piece to work on.
#pragma once
#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

// An even number of pieces, so that it is known at compile time which set of registers one has.
template <uint32_t kWidth>
constexpr uint32_t kPieceColumns = 32;
constexpr uint32_t kStageRegisters = mega_moe::kUnitsPerStage * mega_moe::kUnitRegisters;

template <uint32_t kWidth>
struct PieceWork {
    mega_moe::PackedUnit packed[mega_moe::kUnitsPerStage];  // of the next stage, on their way from shared memory
    uint32_t fragments[2][kStageRegisters];                 // of even and odd stages
    float sums[2][kPieceColumns<kWidth> / 2];               // of even and odd pieces
    uint32_t previous;                                      // the stage before: not released yet
};

template <uint32_t kWidth>
__device__ __forceinline__ void load_stage_codes(const Consumer& c, uint32_t stage, PieceWork<kWidth>& work) {
    const uint32_t weights = ptx::smem_address(c.ctx.smem.weights[stage]);
#pragma unroll
    for (uint32_t u = 0; u < mega_moe::kUnitsPerStage; ++u) work.packed[u].load_codes(weights + c.codes, weights + c.scales, u);
}

template <uint32_t kWidth>
__device__ __forceinline__ void load_stage_tables(const Consumer& c, PieceWork<kWidth>& work) {
#pragma unroll
    for (mega_moe::PackedUnit& unit : work.packed) unit.load_tables(c.table);
}

// Decodes part `kPart` of kParts of the packed stage.
template <uint32_t kParts, uint32_t kPart, uint32_t kWidth>
__device__ __forceinline__ void decode_part(const PieceWork<kWidth>& work, uint32_t (&fragments)[kStageRegisters]) {
    constexpr uint32_t kWords = 4 * mega_moe::kUnitsPerStage;
#pragma unroll
    for (uint32_t w = kPart * kWords / kParts; w < (kPart + 1) * kWords / kParts; ++w) {
        mega_moe::decode_e4m3_word(work.packed[w / 4], w % 4, fragments + w / 4 * mega_moe::kUnitRegisters);
    }
}

// Starts the MMAs of a piece: all of the stage's K.
template <uint32_t kWidth, uint32_t kPiece>
__device__ __forceinline__ void multiply_piece(const Consumer& c, uint32_t stage, PieceWork<kWidth>& work, const uint32_t (&fragments)[kStageRegisters]) {
    constexpr uint32_t kColumns = kPieceColumns<kWidth>;
    static_assert(kColumns % 8 == 0 && kWidth % (2 * kColumns) == 0);
    const uint64_t tokens = layout::gmma_descriptor(ptx::smem_address(c.ctx.smem.tokens[stage]) + kPiece * kColumns * 128);
    float* sums = work.sums[kPiece % 2];
    ptx::wgmma_fence();
    ptx::Wgmma<kColumns>::template e4m3<false>(sums, fragments, tokens);
#pragma unroll
    for (uint32_t step = 1; step < kStageRegisters / 4; ++step) {
        ptx::Wgmma<kColumns>::template e4m3<true>(sums, fragments + 4 * step, tokens + step * layout::kDescriptorStep);
    }
    ptx::wgmma_commit_group();
}

// Waits for a piece, behind which kPending were started, and adds its sums to the total.
template <bool kHasOwnSf, uint32_t kWidth, uint32_t kPiece, uint32_t kPending>
__device__ __forceinline__ void promote_piece(const Consumer& c, uint32_t stage, PieceWork<kWidth>& work, float (&total)[kWidth / 2]) {
    ptx::wgmma_wait_group<kPending>();
    tie(work.sums[kPiece % 2]);
    promote<kHasOwnSf>(c, stage, kPiece * kPieceColumns<kWidth>, work.sums[kPiece % 2], total + kPiece * (kPieceColumns<kWidth> / 2));
}

// Piece kPiece of a stage and all after it; on return the last one still runs.
template <bool kHasOwnSf, uint32_t kWidth, uint32_t kPiece>
__device__ __forceinline__ void multiply_pieces(Consumer& c, uint32_t stage, PieceWork<kWidth>& work, const uint32_t (&fragments)[kStageRegisters],
                                                uint32_t (&next)[kStageRegisters], float (&total)[kWidth / 2], bool is_first, bool is_last, bool is_full = false) {
    constexpr uint32_t kPieces = kWidth / kPieceColumns<kWidth>;
    multiply_piece<kWidth, kPiece>(c, stage, work, fragments);
    if constexpr (kPiece == 0) {
        c.cursor.advance();
        is_full = pipeline::is_full(c.ctx.smem.ring, c.cursor);  // of the next stage; the answer takes its time
        promote_piece<kHasOwnSf, kWidth, kPieces - 1, 1>(c, work.previous, work, total);
#pragma unroll
        for (uint32_t r = 0; r < kStageRegisters; ++r) ptx::tie(next[r]);  // its MMAs are done: the next stage's weights may come
        c.release_if(!is_first, work.previous);
        work.previous = stage;
    } else if constexpr (kPiece == 1) {
        // After the last stage the same one's are loaded again: a branch around loads would wait for them where it ends.
        if (!is_last) pipeline::wait_full(c.ctx.watchdog, c.ctx.smem.ring, c.cursor, is_full);
        load_stage_codes(c, is_last ? stage : c.cursor.stage, work);
        promote_piece<kHasOwnSf, kWidth, 0, 1>(c, stage, work, total);
        load_stage_tables(c, work);
        if constexpr (kPieces == 2) decode_part<1, 0>(work, next);
    } else {
        decode_part<kPieces - 2, kPiece - 2>(work, next);
        promote_piece<kHasOwnSf, kWidth, kPiece - 1, 1>(c, stage, work, total);
    }
    if constexpr (kPiece + 1 < kPieces) multiply_pieces<kHasOwnSf, kWidth, kPiece + 1>(c, stage, work, fragments, next, total, is_first, is_last, is_full);
}

template <bool kHasOwnSf, uint32_t kWidth, uint32_t kParity>
__device__ __forceinline__ void multiply_stage_in_pieces(Consumer& c, PieceWork<kWidth>& work, float (&total)[kWidth / 2], bool is_first, bool is_last) {
    // One value a warp, in a uniform register: descriptors then cost no vector instructions.
    const uint32_t stage = __shfl_sync(~0u, c.cursor.stage, 0);
    multiply_pieces<kHasOwnSf, kWidth, 0>(c, stage, work, work.fragments[kParity], work.fragments[1 - kParity], total, is_first, is_last);
}

// Sums a pass: L1 over hidden, L2 over intermediate.
template <bool kIsL2, bool kHasOwnSf, uint32_t kWidth>
__device__ __forceinline__ void multiply_pass_in_pieces(Consumer& c, float (&total)[kWidth / 2]) {
    constexpr uint32_t kStages = kIsL2 ? config::kL2KStages : config::kL1KStages, kPieces = kWidth / kPieceColumns<kWidth>;
    PieceWork<kWidth> work;
#pragma unroll
    for (float& sum : total) sum = 0.0f;
#pragma unroll
    for (float& sum : work.sums[1]) sum = 0.0f;  // what is promoted before there is a sum
#pragma unroll
    for (uint32_t& fragment : work.fragments[1]) fragment = 0;
    wait_stage(c);
    load_stage_codes(c, c.cursor.stage, work);
    load_stage_tables(c, work);
    decode_part<1, 0>(work, work.fragments[0]);
    work.previous = c.cursor.stage;
#pragma unroll 1
    for (uint32_t k = 0; k + 2 <= kStages; k += 2) {
        multiply_stage_in_pieces<kHasOwnSf, kWidth, 0>(c, work, total, k == 0, k + 1 == kStages);
        multiply_stage_in_pieces<kHasOwnSf, kWidth, 1>(c, work, total, false, k + 2 == kStages);
    }
    if constexpr (kStages % 2 == 1) multiply_stage_in_pieces<kHasOwnSf, kWidth, 0>(c, work, total, kStages == 1, true);
    promote_piece<kHasOwnSf, kWidth, kPieces - 1, 0>(c, work.previous, work, total);
    c.release_if(true, work.previous);
}

}  // namespace roles
