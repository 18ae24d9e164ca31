"""The native engine: PTX functions become LLVM functions over the lanes of a warp."""
