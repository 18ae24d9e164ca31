"""Memory of the emulated device: address spaces, allocations, tensor maps, tensor memory."""
