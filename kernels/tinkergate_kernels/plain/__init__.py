"""Everything in plain PyTorch, on any device: what the public functions take when the environment
asks for it, see `tinkergate_kernels.dispatch`. No kernels, no threads, no other library; the logits
of a few rows at a time are there whole. For telling a wrong kernel from a wrong model."""
