"""Kinds of reports: what each means, how sure it is, which exception it raises, where the PTX ISA says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from megamoe_jit.errors import DeadlockFault, EmulatorFault, MemoryFault, RaceFault

Severity = Literal["error", "warning"]

_MODEL = "Memory Consistency Model"
_MBARRIER = "Parallel Synchronization and Communication Instructions: mbarrier"
_ASYNC = "Data Movement and Conversion Instructions: Asynchronous copy"
_PROXY = "Memory Consistency Model: Proxies"
_WGMMA = "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions"
_TC = "TensorCore 5th Generation Family Instructions"
_SYNC = "Parallel Synchronization and Communication Instructions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of report.

    Attributes:
        name: what `Emulator(suppress=(...))` takes.
        fault: exception that it raises when checks are errors.
        severity: "error" for what is certainly wrong, "warning" for what is wrong on some implementations only.
        section: PTX ISA section, unless the report names a closer one.
        meaning: one sentence.
    """

    name: str
    fault: type[EmulatorFault]
    severity: Severity
    section: str
    meaning: str


def _kinds(*kinds: tuple[str, type[EmulatorFault], Severity, str, str]) -> Mapping[str, Kind]:
    return {
        name: Kind(name=name, fault=fault, severity=severity, section=section, meaning=meaning)
        for name, fault, severity, section, meaning in kinds
    }


KINDS: Mapping[str, Kind] = _kinds(
    # Memory.
    ("out-of-bounds", MemoryFault, "error", _MODEL, "An access lies outside of every allocation or shared space."),
    ("misaligned", MemoryFault, "error", _MODEL, "An address is no multiple of what the access needs."),
    ("read-only", MemoryFault, "error", _MODEL, "A write to memory that may only be read."),
    ("foreign-rank", MemoryFault, "error", _MODEL, "An access to another rank's memory that is not shared with peers."),
    ("cta-exited", MemoryFault, "error", "Cluster of Cooperative Thread Arrays", "Shared memory of a CTA that left."),
    ("uninitialised", RaceFault, "warning", _MODEL, "Shared memory is read that nobody wrote."),
    ("mbarrier-bytes", RaceFault, "error", _MBARRIER, "An ordinary access touches the bytes of a live mbarrier."),
    # Ordering.
    ("race", RaceFault, "error", _MODEL, "Two accesses to the same bytes, one of them a write, with nothing between."),
    (
        "same-store",
        RaceFault,
        "error",
        _MODEL,
        "Warps store to the same bytes by one instruction, unordered: wrong unless they store the same.",
    ),
    ("in-flight", RaceFault, "error", _ASYNC, "Bytes are used that an asynchronous operation has yet to write."),
    ("overwrite", RaceFault, "error", _ASYNC, "Bytes are written that an asynchronous operation has yet to read."),
    ("unordered-rows", RaceFault, "warning", _ASYNC, "A tensor copy reads rows that others write meanwhile."),
    ("proxy", RaceFault, "error", _PROXY, "Generic and async proxy meet at bytes without a fence.proxy.async between."),
    (
        "proxy-overwrite",
        RaceFault,
        "error",
        _PROXY,
        "A copy overwrites what ordinary stores wrote, without a fence.proxy.async between.",
    ),
    ("scope", RaceFault, "error", f"{_MODEL}: Morally strong operations", "Too narrow a scope for who meets there."),
    ("tcgen05-fence", RaceFault, "error", "tcgen05 Memory Consistency Model", "A tcgen05 fence is missing."),
    # Barriers.
    ("mbarrier-init", EmulatorFault, "error", f"{_MBARRIER}.init", "An mbarrier is used that is not initialised."),
    (
        "mbarrier-init-fence",
        RaceFault,
        "error",
        f"{_MBARRIER}.init",
        "Asynchronous work uses an mbarrier whose initialisation no fence has shown to its proxy.",
    ),
    ("mbarrier-reinit", EmulatorFault, "error", f"{_MBARRIER}.init", "An mbarrier is initialised again while in use."),
    ("mbarrier-reinit-quiet", EmulatorFault, "warning", f"{_MBARRIER}.init", "A live mbarrier is initialised again."),
    ("mbarrier-count", EmulatorFault, "error", f"{_MBARRIER}.arrive", "More arrivals than a phase expects."),
    ("mbarrier-tx", EmulatorFault, "error", f"{_MBARRIER}.expect_tx", "A transaction count leaves its range."),
    ("phase-missed", EmulatorFault, "error", f"{_MBARRIER}.try_wait", "A phase ended and another began unseen."),
    ("phase-alias", EmulatorFault, "warning", f"{_MBARRIER}.try_wait", "A waiter may be two phases behind."),
    ("barrier-args", EmulatorFault, "error", f"{_SYNC}: barrier", "A named barrier is used with arguments that clash."),
    ("cluster-barrier", EmulatorFault, "error", f"{_SYNC}: barrier.cluster", "Arrive and wait do not alternate."),
    ("non-uniform", EmulatorFault, "error", _SYNC, "Lanes are elsewhere at an .aligned instruction."),
    ("member-mask", EmulatorFault, "error", _SYNC, "Lanes named by a member mask never come."),
    # Tensor cores.
    ("descriptor", EmulatorFault, "error", f"{_TC}: Instruction Descriptor", "A descriptor has an illegal field."),
    ("wgmma-fence", RaceFault, "error", f"{_WGMMA}: wgmma.fence", "Registers were written since the last fence."),
    ("wgmma-registers", RaceFault, "error", _WGMMA, "Registers of a wgmma in flight are touched."),
    ("tcgen05-issue", EmulatorFault, "error", _TC, "Several threads issue what one is to issue."),
    ("tmem-bounds", MemoryFault, "error", f"{_TC}: Tensor Memory", "Cells are touched that are not allocated."),
    ("tmem-alloc", EmulatorFault, "error", f"{_TC}: tcgen05.alloc", "Columns are taken or freed against the rules."),
    ("tmem-lanes", MemoryFault, "error", f"{_TC}: Access restrictions", "A warp names lanes of another quarter."),
    ("tmem-registers", RaceFault, "error", f"{_TC}: tcgen05.wait", "Registers of a load are used before wait::ld."),
    ("scale-factors", EmulatorFault, "error", f"{_TC}: Block Scaling", "Copies of scale factors differ."),
    # Leaving.
    ("exit-pending", RaceFault, "error", _ASYNC, "A CTA leaves while asynchronous work on its memory is under way."),
    ("exit-tx", EmulatorFault, "warning", _MBARRIER, "A CTA leaves with transactions outstanding on an mbarrier."),
    ("tmem-leak", EmulatorFault, "error", "tcgen05.alloc, tcgen05.dealloc", "Tensor memory is not given back."),
    # Others.
    ("setmaxnreg", EmulatorFault, "error", "Miscellaneous Instructions: setmaxnreg", "A register count is not legal."),
    ("argument", EmulatorFault, "error", "PTX ISA", "An operand has a value that the instruction does not take."),
    ("trap", EmulatorFault, "error", "Miscellaneous Instructions: trap", "The kernel stopped itself."),
    ("assert", EmulatorFault, "error", "CUDA C++: assertion", "A device assertion failed."),
    ("deadlock", DeadlockFault, "error", _SYNC, "No warp can go on."),
    ("livelock", DeadlockFault, "error", _SYNC, "The limit on instructions or time is reached."),
    ("note", EmulatorFault, "warning", "PTX ISA", "Something worth a look."),
)  # fmt: skip
"""Every kind of report, by name."""


def kind_of(name: str) -> Kind:
    """Return the kind called `name`; a name that no table row has is an error of its own kind."""
    known = KINDS.get(name)
    if known is not None:
        return known
    return Kind(name=name, fault=EmulatorFault, severity="error", section="PTX ISA", meaning="")
