"""Compiles the kernel ahead of time to PTX for one architecture, with no GPU, and reads what came out of it.

Traps this file knows: without `tt.divisibility` on the pointers nothing is loaded in vectors and nothing is pipelined;
PTX is written for one architecture (sm_90a code runs on 9.0 alone); Triton adds two trailing scratch pointers to the
signature that nobody passes, so a kernel that would use them is refused; a driver loads no PTX newer than it knows,
so its version is held down.
"""

import re
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.kernels.arguments import Problem, constants, signature
from plugins.kernels.variants import ATTENTION, SHARED_MEMORY, Variant, variants

PTX_VERSION = {80: 83, 86: 83, 87: 83, 89: 83, 90: 83, 100: 87, 103: 88, 110: 90, 120: 87, 121: 88}
"""The lowest PTX version that has what the kernel needs on the architecture; CUDA 12.3 drivers and later take 8.3."""


DESCRIPTORS_PTX = 87
"""Loads by tensor descriptors, as Triton 3.9 writes them, take PTX 8.6; CUDA 12.8 drivers and later take 8.7."""


class KernelError(Exception):
    """No variant of the kernel compiles for the architecture; the sentence says what each one met."""


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled.

    Attributes:
        name: Its entry point.
        ptx: Its code.
        sm: The compute capability it is for, e.g. 90.
        variant: Its tiles.
        shared: Bytes of dynamic shared memory a launch must give.
        registers: Registers of one thread.
        spilled: Bytes of registers spilled to local memory.
        scratch: Bytes of global scratch memory it would need.
    """

    name: str
    ptx: str
    sm: int
    variant: Variant
    shared: int
    registers: int
    spilled: int
    scratch: int

    @property
    def threads(self) -> int:
        """Threads of one block."""
        return 32 * self.variant.warps

    def grid(self, queries: int, planes: int) -> tuple[int, int, int]:
        """Returns the blocks of a launch: tiles of query rows, by batch times query heads."""
        return -(-queries // self.variant.block_m), planes, 1


def compile_ahead(problem: Problem, sm: int, kernel: str = ATTENTION, scratch: bool = False) -> Compiled:
    """Returns the first variant that fits the architecture without spilling registers.

    Args:
        problem: What the kernel computes.
        sm: Compute capability, e.g. 80, 89, 90, 120.
        kernel: ATTENTION or DECODE.
        scratch: Whether whoever launches it gives it global scratch memory, as Triton does and TensorRT does not.

    Raises:
        KernelError: The architecture is not known, or no variant fits it.
    """
    if sm not in SHARED_MEMORY:
        raise KernelError(
            f"SM {sm} is not one the kernel is made for; these are: {', '.join(map(str, SHARED_MEMORY))}."
        )
    met = []
    for variant in variants(max(constants_block(problem)), problem.dtype, kernel, sm):
        trouble = unsuited(problem, variant, scratch)
        if not trouble:
            compiled = compile_variant(problem, variant, sm, kernel)
            trouble = misfit(compiled, scratch)
            if not trouble:
                return compiled
        met.append(f"{variant.block_m}x{variant.block_n}: {trouble}")
    raise KernelError(f"No variant of the kernel fits SM {sm} for {problem}: {'; '.join(met)}.")


def constants_block(problem: Problem) -> tuple[int, int]:
    """Returns the padded sizes of Q's and V's heads, which set how much of the machine a tile takes."""
    found = constants(problem, Variant(16, 16, 4, 1))
    return int(str(found["BLOCK_D"])), int(str(found["BLOCK_DV"]))


def unsuited(problem: Problem, variant: Variant, scratch: bool) -> str:
    """Returns why a variant is not for a problem, "" where it may be."""
    if not variant.descriptors:
        return ""
    if not scratch:
        return "its tensor descriptors need global scratch memory, which nobody gives it"
    item = 4 if problem.dtype == "fp32" else 2
    odd = [size for size in (problem.head_size, problem.value_size) if size * item % 16]
    return f"tensor descriptors take rows of a multiple of 16 bytes, and a head has {odd[0]} numbers" if odd else ""


def misfit(compiled: Compiled, scratch: bool = False) -> str:
    """Returns why a compiled kernel does not fit its architecture, "" where it does."""
    limit = SHARED_MEMORY[compiled.sm] * 1024
    if compiled.scratch and not scratch:
        return f"it needs {compiled.scratch} bytes of global scratch memory, which nobody gives it"
    if compiled.shared > limit:
        return f"{compiled.shared} bytes of shared memory, {limit} are to be had"
    return f"{compiled.spilled} bytes of registers spilled" if compiled.spilled else ""


def compile_variant(
    problem: Problem, variant: Variant, sm: int, kernel: str = ATTENTION, split: bool = True
) -> Compiled:
    """Returns one variant compiled, whether it fits or not.

    Args:
        problem: What the kernel computes.
        variant: Its tiles.
        sm: Compute capability.
        kernel: ATTENTION, DECODE or COMBINE.
        split: Whether the decode kernel leaves partial results.

    Raises:
        KernelError: Triton is not installed, or it refuses the kernel.
    """
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError as error:
        raise KernelError(
            f"Compiling the kernel needs Triton, which is not installed ({error}). pip install 'attnproof[plugin]'"
        ) from error
    function = jitted(kernel)
    names = tuple(function.arg_names)
    types = signature(names, problem)
    values = constants(problem, variant, split=split, names=names)
    source = ASTSource(
        fn=function,
        signature=types,
        constexprs={(i,): values[name] for i, name in enumerate(names) if name in values},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name].startswith("*")},
    )
    version = max(PTX_VERSION[sm], DESCRIPTORS_PTX if variant.descriptors else 0)
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "ptx_version": version}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")  # the default is what we want
        try:
            made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
        except Exception as error:  # the compiler's own errors have no common base
            raise KernelError(
                f"Triton {triton.__version__} does not compile the kernel for SM {sm}: {error}"
            ) from error
    ptx = str(made.asm["ptx"])
    registers, spilled = _assemble(ptx, sm)
    return Compiled(
        name=made.metadata.name,
        ptx=ptx,
        sm=sm,
        variant=variant,
        shared=made.metadata.shared,
        registers=registers,
        spilled=spilled,
        scratch=made.metadata.global_scratch_size,
    )


def jitted(kernel: str) -> Any:
    """Returns Triton's function of one of the kernels."""
    from plugins.kernels import attention, decode

    return getattr(attention if kernel == ATTENTION else decode, kernel)


def _assemble(ptx: str, sm: int) -> tuple[int, int]:
    """Returns registers per thread and bytes spilled, as the assembler that comes with Triton tells them."""
    from triton.backends.nvidia import compiler as backend

    tool: Any = backend.get_ptxas(sm) if backend.get_ptxas.__code__.co_argcount else backend.get_ptxas()
    found = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx)
        command = [tool.path, "-v", "--gpu-name", found.group(1) if found else f"sm_{sm}", file, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    if done.returncode or not registers or not spills:
        raise KernelError(f"The assembler does not take the kernel's PTX for SM {sm}: {done.stderr.strip()[-400:]}")
    return int(registers.group(1)), int(spills.group(1)) + int(spills.group(2))
