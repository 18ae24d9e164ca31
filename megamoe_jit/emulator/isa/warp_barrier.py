"""bar.warp.sync: engines execute it, for its lanes may come from different places of the program."""

from __future__ import annotations

from megamoe_jit.emulator.isa.table import control

control("bar.warp.sync", section="Parallel Synchronization and Communication Instructions: bar.warp.sync")
