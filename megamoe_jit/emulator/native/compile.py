"""LLVM as this engine uses it: IR text to object code, object code to callable addresses."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence

import llvmlite.binding as llvm

_names = itertools.count()


class Library:
    """Object code, loaded; `address(name)` of its functions is good as long as the library lives."""

    def __init__(self, objects: Sequence[bytes], exports: Iterable[str], imports: Mapping[str, int]) -> None:
        """Link `objects` with one another, with `imports` (name -> address), and with the process's C library."""
        builder = llvm.JITLibraryBuilder()
        for image in objects:
            builder.add_object_img(image)
        for name, address in imports.items():
            builder.import_symbol(name, address)
        builder.add_current_process()
        for name in exports:
            builder.export_symbol(name)
        self._tracker = builder.link(_linker(), f"emulator{next(_names)}")

    def address(self, name: str) -> int:
        """Return where an exported function is."""
        return int(self._tracker[name])


def host() -> str:
    """Return what object code depends on: LLVM's version, the CPU and its features."""
    version = ".".join(map(str, llvm.llvm_version_info))
    return f"LLVM {version} {llvm.get_process_triple()} {llvm.get_host_cpu_name()} {_features()}"


def compile_ir(text: str, *, optimise: bool, cpu: str | None = None) -> bytes:
    """Compile a module of IR; `optimise` runs the O2 pipeline and code generator, else O0's code generator alone."""
    module = llvm.parse_assembly(text)
    machine = _machine(2 if optimise else 0, cpu)
    if optimise:
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
    image: bytes = machine.emit_object(module)
    return image


@functools.cache
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@functools.cache
def _features() -> str:
    return str(llvm.get_host_cpu_features().flatten())


def _machine(level: int, cpu: str | None = None) -> llvm.TargetMachine:
    _initialise()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    features = _features() if cpu is None else ""
    return target.create_target_machine(
        cpu=cpu or llvm.get_host_cpu_name(), features=features, opt=level, reloc="pic", codemodel="default", jit=True
    )


@functools.cache
def _linker() -> llvm.LLJIT:
    return llvm.create_lljit_compiler(_machine(0))
