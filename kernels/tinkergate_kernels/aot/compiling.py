"""From a shipped configuration to machine code, for GPUs that are not here."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import re
import subprocess
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

import tinkergate_kernels.gpu
from tinkergate_kernels.gpu.shipped import Shipped

_TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """One configuration compiled for one target."""

    target: str
    tile_code: str
    """Triton's intermediate code, with tiles and no layouts: the same for every target."""
    thread_code: str
    """LLVM's intermediate code, of one thread."""
    assembly: str
    """NVIDIA's SASS, disassembled, or AMD's assembly."""
    resources: str
    """What cuobjdump says of registers and stack; empty on AMD, whose assembly says it."""
    shared_bytes: int
    threads: int
    """In one program."""


def shipped() -> list[Shipped]:
    """Every configuration listed in a module of `tinkergate_kernels.gpu`, by name. Raises
    ValueError if two have the same name."""
    found: dict[str, Shipped] = {}
    package = tinkergate_kernels.gpu
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        for each in getattr(importlib.import_module(module.name), "SHIPPED", ()):
            if each.name in found:
                raise ValueError(f"two shipped configurations have the name {each.name!r}")
            found[each.name] = each
    return [found[name] for name in sorted(found)]


def compile_for(configuration: Shipped, target: str) -> Compiled:
    """Compile. Raises ValueError if the signature and the constants are not the arguments."""
    # Triton 3.10 is to turn the fusion of a product and a sum off, which costs instructions.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    kernel = _for_compiler(configuration.kernel)
    source = ASTSource(
        kernel,
        _signature(configuration, kernel.arg_names),
        constexprs=dict(configuration.constants),
        attrs={
            (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
            for name in configuration.divisible_by_16
        },
    )
    options = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    gpu = _TARGETS[target]
    binary = triton.compile(source, target=gpu, options=options)
    cubin = binary.asm.get("cubin")
    return Compiled(
        target=target,
        tile_code=binary.asm["ttir"],
        thread_code=binary.asm["llir"],
        assembly=_tool("nvdisasm", "-c", cubin) if cubin else binary.asm["amdgcn"],
        resources=_tool("cuobjdump", "--dump-resource-usage", cubin) if cubin else "",
        shared_bytes=int(binary.metadata.shared),
        threads=int(binary.metadata.num_warps) * gpu.warp_size,
    )


def versions() -> str:
    """Of Triton and of the assemblers it brings, in words."""
    found = []
    for tool in ("ptxas", "ptxas-blackwell"):
        told = subprocess.run(
            [_TOOLS / tool, "--version"], capture_output=True, text=True, check=True
        ).stdout
        number = re.search(r"release [\d.]+, V([\d.]+)", told)
        assert number is not None, told
        found.append(f"{tool} {number[1]}")
    return f"Triton {triton.__version__}, its {' and '.join(found)}, and its LLVM for AMD"


def _signature(configuration: Shipped, arguments: list[str]) -> dict[str, str]:
    known = {*configuration.signature, *configuration.constants}
    if known != set(arguments):
        raise ValueError(
            f"{configuration.name}: signature and constants name {sorted(known)}; "
            f"must be the arguments of the kernel, {sorted(arguments)}"
        )
    return {
        name: "constexpr" if name in configuration.constants else configuration.signature[name]
        for name in arguments
    }


@functools.cache
def _for_compiler(kernel: Any) -> Any:
    """The kernel for the compiler, also if it was decorated for the interpreter. Then so were the
    functions that it calls, and its globals hold the interpreter's versions of them."""
    return kernel if isinstance(kernel, JITFunction) else _recompilable(kernel, {})


def _recompilable(kernel: Any, seen: dict[int, Any]) -> Any:
    if id(kernel) not in seen:
        function = kernel.fn
        scope = dict(function.__globals__)
        copy = types.FunctionType(
            function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
        )
        for attribute in ("__kwdefaults__", "__annotations__", "__module__", "__qualname__"):
            setattr(copy, attribute, getattr(function, attribute))
        seen[id(kernel)] = JITFunction(copy)
        for name, value in _interpreted(scope):
            scope[name] = _recompilable(value, seen)
    return seen[id(kernel)]


def _interpreted(scope: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in list(scope.items()):
        if isinstance(value, InterpretedFunction):
            yield name, value


def _tool(name: str, option: str, binary: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run([_TOOLS / name, option, file.name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} {option} failed: {done.stderr.strip()}")
    return done.stdout
