"""Parts of `benchmarks.emulator_fuzz`: small kernels, ways to damage their PTX, and the process that runs them."""
