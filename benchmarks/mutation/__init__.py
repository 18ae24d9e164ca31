"""Parts of `benchmarks.emulator_mutations`: mistakes of one instruction, and the kernels that they are made in."""
