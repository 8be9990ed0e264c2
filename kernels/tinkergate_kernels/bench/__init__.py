"""How fast are the kernels on this machine? `python -m tinkergate_kernels.bench` measures.

Every public function is timed on the device there is, beside plain PyTorch, `torch.compile`, and
the packages liger-kernel and cut-cross-entropy where they are installed. What the device can do is
probed in the same run, by a bare matrix product and a bare copy, and times are told as shares of
that too: ratios of one run mean something on a machine that others use as well, milliseconds less.

    timing.py     rounds, medians, what the device can do
    rivals.py     the other ways to compute the same
    tasks.py      what is timed, and how many operations and bytes it needs at least
"""
