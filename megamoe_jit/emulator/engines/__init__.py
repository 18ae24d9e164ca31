"""What computes and moves data beside the warps: tensor cores, tensor memory, copies."""
