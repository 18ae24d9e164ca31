"""What `benchmarks.hopper_speed` times: our recipes and other software that computes the same layer, one file each."""
