"""An independent float64 oracle of the MoE layer. It shares the number formats with the kernels, and nothing else."""
