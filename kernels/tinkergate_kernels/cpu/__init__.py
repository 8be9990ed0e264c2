"""The kernels on a CPU: PyTorch and NumPy alone, no compiler at run time."""
