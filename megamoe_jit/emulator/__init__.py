"""Executes PTX on the CPU: warps, clusters, TMA, tensor cores, several ranks at once; reports what a kernel does wrong.

emulator = Emulator(seed=1)
module = emulator.load(ptx)
module.launch("scale", grid=4, block=128, args=[x, y, 2.0])
print(module.report)
"""

from megamoe_jit.emulator.api import Emulator, Launch, Limits, Memory, Module
from megamoe_jit.emulator.faults import KINDS
from megamoe_jit.emulator.report import Event, LaunchReport, Report, Who

__all__ = ["KINDS", "Emulator", "Event", "Launch", "LaunchReport", "Limits", "Memory", "Module", "Report", "Who"]
