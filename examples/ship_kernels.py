"""How do I ship kernels to machines that may not compile? Warm up, pack; unpack there, and refuse to compile.

The same from a shell: `megamoe-jit warmup`, `megamoe-jit cache pack`, `megamoe-jit cache unpack`, and
MEGAMOE_JIT_CACHE_ONLY=1. Compiling needs no GPU, so that any build machine will do.
"""

import os
import tempfile
from pathlib import Path

from megamoe_jit import MissingKernelError, Problem
from megamoe_jit.jit.archive import pack, unpack
from megamoe_jit.jit.build import build
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.recipes import plan_kernels


def main() -> None:
    """Compile a small layer's kernels into one cache, move them to another, and use them there."""
    problem = Problem(hidden=512, intermediate=256, num_experts=8, num_topk=2, max_tokens_per_rank=16)
    kernels = plan_kernels(problem, "fp8_nvfp4", "sm_90a")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "kernels.tar.gz"
        builder, container = KernelCache(Path(folder) / "build"), KernelCache(Path(folder) / "container")
        for kernel in kernels:
            built = build(kernel, cache=builder)
            print(f"{built.kernel_name}: {built.resources.registers} registers, {built.artifact.compile_s:.2f} s")
        print(f"packed {len(pack(builder, archive))} kernels: {archive.stat().st_size} B")

        os.environ["MEGAMOE_JIT_CACHE_ONLY"] = "1"
        try:
            build(kernels[0], cache=container)
        except MissingKernelError as error:
            print(f"before unpacking: {str(error).split('.')[0]}")
        unpack(archive, container)
        print(f"after: {[build(kernel, cache=container).origin.value for kernel in kernels]}")
        del os.environ["MEGAMOE_JIT_CACHE_ONLY"]


if __name__ == "__main__":
    main()
