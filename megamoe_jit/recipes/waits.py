"""What kernels wait for, in words; the codes are `comm::WaitFor` in templates/comm/wait.cuh."""

WAITS: dict[int, str] = {
    1: "tokens and weights of a stage (loaders to fill it)",
    2: "a stage to be free (consumers to release it)",
    3: "the list of an expert's routed tokens",
    4: "the L1 tiles of a token tile",
    5: "all L2 tiles",
    6: "the MMAs of a tile",
    7: "an accumulator to be free (the epilogue to release it)",
    8: "the routed rows of a token tile (dispatch to bring them)",
    9: "a place in the ring of token tiles (L2 of the tile that had it)",
    10: "the next tile (the scheduler to name it)",
    11: "a place in the queue of tiles (loaders and consumers to release one)",
}
