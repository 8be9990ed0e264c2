"""The kernels on a GPU, in Triton.

Imported only where a tensor on a GPU asks for it: Triton is not there on every machine. Every module
lists the configurations that it ships in `SHIPPED`, for the ahead-of-time check.
"""
