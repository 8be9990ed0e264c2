"""Are the kernels right on this machine? `python -m tinkergate_kernels.selftest` answers.

Every public function is computed on the device there is and compared with float64 on the CPU, by
the formulas of `tinkergate_kernels.reference`. A file for each function: `linear.py`,
`selective.py`, `losses.py`.
"""
