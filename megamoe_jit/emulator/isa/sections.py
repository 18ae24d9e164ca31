"""Where the PTX ISA describes an opcode: for errors about opcodes that have no row."""

from __future__ import annotations

_SECTIONS = {
    "Integer Arithmetic Instructions": "sad abs neg min max popc clz bfind fns brev bfe bfi szext bmsk dp4a dp2a "
    "mul24 mad24",
    "Extended-Precision Integer Arithmetic Instructions": "addc subc madc",
    "Floating Point Instructions": "fma rcp sqrt rsqrt sin cos lg2 ex2 tanh testp copysign",
    "Arithmetic Instructions (integer, floating point, half or mixed precision)": "add sub mul mad div rem",
    "Comparison and Selection Instructions": "set setp selp slct",
    "Logic and Shift Instructions": "and or xor not cnot lop3 shf shl shr",
    "Data Movement and Conversion Instructions": "mov prmt ld ldu st prefetch prefetchu isspacep cvta cvt mapa "
    "getctarank applypriority discard createpolicy istypep",
    "Data Movement and Conversion Instructions: shfl.sync": "shfl",
    "Data Movement and Conversion Instructions: Asynchronous copy": "cp",
    "Data Movement and Conversion Instructions: Tensor copy": "tensormap",
    "Data Movement and Conversion Instructions: multimem": "multimem",
    "Texture Instructions": "tex tld4 txq",
    "Surface Instructions": "suld sust sured suq",
    "Control Flow Instructions": "bra brx call ret exit",
    "Parallel Synchronization and Communication Instructions": "bar barrier membar fence atom red vote "
    "match activemask redux griddepcontrol elect",
    "Parallel Synchronization and Communication Instructions: mbarrier": "mbarrier",
    "Parallel Synchronization and Communication Instructions: clusterlaunchcontrol": "clusterlaunchcontrol",
    "Warp Level Matrix Multiply-Accumulate Instructions": "wmma mma ldmatrix stmatrix movmatrix",
    "Asynchronous Warpgroup Level Matrix Instructions": "wgmma",
    "TensorCore 5th Generation Family Instructions": "tcgen05",
    "Stack Manipulation Instructions": "stacksave stackrestore alloca",
    "Video Instructions": "vadd vsub vabsdiff vmin vmax vshl vshr vmad vset vadd2 vadd4 "
    "vabsdiff2 vabsdiff4 vavrg2 vavrg4",
    "Miscellaneous Instructions": "brkpt nanosleep pmevent trap setmaxnreg",
}
_BY_BASE = {base: section for section, bases in _SECTIONS.items() for base in bases.split()}


def section_of(opcode: str) -> str:
    """Return the section that describes the base of `opcode`, as far as the base tells."""
    base = opcode.partition(".")[0]
    section = _BY_BASE.get(base)
    return f"{section}, {base}" if section else "no section known"
