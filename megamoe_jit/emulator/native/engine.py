"""The native engine: programs are LLVM functions."""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.machine.engine import Stop, StopKind
from megamoe_jit.emulator.native.binding import Binding, bind, fingerprint, new_warp
from megamoe_jit.emulator.native.codegen import KERNEL, generate
from megamoe_jit.emulator.native.compile import Library, compile_ir
from megamoe_jit.emulator.native.helpers import Helpers, load_helpers
from megamoe_jit.emulator.native.objects import ObjectCache
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.engine import Handler
    from megamoe_jit.emulator.machine.state import Cta, Warp
    from megamoe_jit.emulator.parser.nodes import Function, PtxModule

MAX_INSTRUCTIONS = 50_000
"""Code of O0 has a stack frame of 25 to 60 bytes an instruction, and a thread's stack has 8 MiB."""
_STOPS = tuple(StopKind)
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class NativeProgram:
    """A function as machine code.

    Attributes:
        binding: meaning of each instruction.
        function: what it was made of.
        handlers: PC -> handler.
        layout: where registers are.
        blocks: straight pieces; block_counts: how often each was executed, by all warps so far.
    """

    def __init__(self, binding: Binding, library: Library) -> None:
        """Take a loaded library with the kernel."""
        self.binding = binding
        self.function = binding.function
        self.handlers: Mapping[int, Handler] = binding.handlers
        self.layout = binding.layout
        self.blocks = binding.blocks
        self.block_counts = np.zeros(len(self.blocks), np.uint64)
        self.enter = _ENTRY(library.address(KERNEL))
        self._library = library
        self._hints = np.zeros(len(binding.ops) + 1, np.uint32)
        self._files: list[npt.NDArray[np.uint8]] = []

    def new_warp(self, cta: Cta, index: int) -> Warp:
        """Make warp `index` of `cta`."""
        if self._files:
            regs = self._files.pop()
            regs[:] = 0
        else:
            regs = self.layout.new_file()
        warp = new_warp(cta, index, self, self.binding, regs)
        warp.ctx.block_counts = self.block_counts.ctypes.data
        warp.ctx.hints = self._hints.ctypes.data
        return warp

    def free_warp(self, warp: Warp) -> None:
        """Take back the register file of a warp that has exited."""
        self._files.append(warp.regs)

    def instruction_counts(self) -> Counter[str]:
        """Return how often warps executed each opcode."""
        executions = zip(self.blocks, self.block_counts.tolist(), strict=True)
        return self.binding.counts((range(block.start, block.end), count) for block, count in executions)


@functools.lru_cache(maxsize=64)
def _compile_forms(text: str) -> bytes:
    """Compile long forms, which kernels of one process often have in common."""
    return compile_ir(text, optimise=True)


class NativeEngine:
    """Compiles functions with LLVM, and keeps the object code in a folder."""

    def __init__(self, cache_dir: Path | str | None = None) -> None:
        """Load the helpers; without `cache_dir` nothing is kept on disk."""
        self._cache = ObjectCache(cache_dir)
        self._helpers: Helpers = load_helpers(self._cache)

    def prepare(self, function: Function, module: PtxModule) -> NativeProgram:
        """Make a program of `function`; raises UnsupportedError that lists every instruction without a meaning here."""
        if len(function.instructions) > MAX_INSTRUCTIONS:
            raise UnsupportedError(
                f"{function.name} has {len(function.instructions)} instructions; the native engine takes up to "
                f'{MAX_INSTRUCTIONS}. Use engine="numpy", or a smaller tile.'
            )
        binding = bind(function, module)
        key = self._cache.key("kernel", fingerprint(function, binding.symbols))
        objects = self._cache.load(key)
        if objects is None:
            kernel, forms = generate(binding)
            objects = [compile_ir(kernel, optimise=False)]
            if forms is not None:
                objects.append(_compile_forms(forms))
            self._cache.keep(key, objects)
        return NativeProgram(binding, Library(objects, [KERNEL], self._helpers.addresses))

    def run(self, warp: Warp) -> Stop:
        """Run `warp` until Python is needed."""
        ctx = warp.ctx
        warp.program.enter(ctypes.addressof(ctx))  # type: ignore[attr-defined]  # a NativeProgram
        stop = ctx.stop
        if stop < 0:
            raise RuntimeError(f"a lane is at PC {ctx.pc}, where no block of {warp.program.function.name} begins")
        return Stop(_STOPS[stop], ctx.pc, ctx.stop_mask)
