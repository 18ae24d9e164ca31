"""PTX text of a kernel around its body."""

from __future__ import annotations

from collections.abc import Sequence

# Enough registers of each size for every hand-written kernel; what a kernel does not use costs nothing.
REGISTERS = """\
    .reg .pred %p<16>;
    .reg .b16 %h<32>;
    .reg .b32 %r<64>;
    .reg .b64 %d<32>;
    .reg .f32 %f<32>;
"""
MAP_PARAM = ".align 64 .b8 map[128]"


def kernel(
    body: str,
    params: Sequence[str],
    *,
    outside: str = "",
    directives: str = "",
    version: str = "8.0",
    registers: str = REGISTERS,
) -> str:
    """Return a module with one entry. `params` are declarations (".u64 out"); pointers are loaded as `%out`."""
    pointers = [text.split()[1] for text in params if text.startswith(".u64 ")]
    declared = ",\n".join(f"    .param {text}" for text in params)
    loads = "".join(f"    .reg .b64 %{name};\n    ld.param.u64 %{name}, [{name}];\n" for name in pointers)
    lines = [line.strip() for line in body.strip().splitlines()]
    text = "\n".join(line if not line or line.endswith(":") else f"    {line}" for line in lines)
    return (
        f".version {version}\n.target sm_90a\n.address_size 64\n\n{outside}"
        f".visible .entry kernel(\n{declared}\n)\n{directives}{{\n{registers}{loads}{text}\n    ret;\n}}\n"
    )


def wait(barrier: str, parity: str, label: str) -> str:
    """Return a loop that waits until the phase of that parity has completed; uses %p15."""
    return f"""
        {label}:
        mbarrier.try_wait.parity.shared::cta.b64 %p15, [{barrier}], {parity};
        @!%p15 bra {label};
    """
