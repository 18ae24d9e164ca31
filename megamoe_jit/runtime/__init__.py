"""From built kernels and tensors to running kernels: the only part that calls the CUDA driver or torch.distributed."""
