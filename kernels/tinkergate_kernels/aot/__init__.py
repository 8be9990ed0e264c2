"""The ahead-of-time gate: what the compiled kernels look like, read off without a GPU.

`python -m tinkergate_kernels.aot` compiles every configuration that a module of
`tinkergate_kernels.gpu` lists as `SHIPPED` for each of its targets, holds the machine code to the
configuration's `Bounds`, and writes what it read into a table.

    compiling.py      from a configuration to machine code; also where kernels were decorated
                      for the interpreter
    tile_code.py      the accesses and matrix products that a kernel asks for, in tiles
    thread_code.py    how wide the accesses of one thread are, and where they come from
    control_flow.py   loops of machine code
    machine_code.py   registers, spills, instructions of NVIDIA's and AMD's machine code
    cost_model.py     cards, and how near to their limits a loop can come
    gates.py          the rules
    report.py         the table

Imports Triton.
"""
