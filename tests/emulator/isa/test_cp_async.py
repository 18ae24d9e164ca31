"""cp.async: bytes, zero fill, groups of each lane, arrivals after earlier copies."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator.memory.spaces import SHARED_WINDOW
from megamoe_jit.errors import EmulatorFault, MemoryFault, UnsupportedError
from tests.emulator.isa.rig import ALL, Rig, address_of, parks, shared

WAIT = ("cp.async.commit_group", "cp.async.wait_group 0", "cp.async.wait_all")


def noise(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


@pytest.mark.parametrize(("cache", "size"), [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)])
@pytest.mark.parametrize("form", ["plain", "src-size", "ignore", "ignore not"])
@pytest.mark.parametrize("mask", [ALL, 0x00FF00F1, 1 << 17])
def test_bytes_arrive_with_zeros_behind(cache: str, size: int, form: str, mask: int) -> None:
    extra = {"plain": "", "src-size": ", %r2", "ignore": ", %p1", "ignore not": ", !%p1"}[form]
    hint = ".L2::cache_hint.L2::128B" if form == "plain" else ""
    policy = ", %d2" if hint else ""
    rig = Rig(f"cp.async.{cache}.shared.global{hint} [%r0+{size}], [%d0-{size}], {size}{extra}{policy}", *WAIT)
    rng = random.Random(f"{cache} {size} {form} {mask}")
    data = rig.memory(noise(64 * size))
    to, from_ = rng.sample(range(64), 32), [rng.randrange(64) for _ in range(32)]
    counts = [rng.randint(0, size) for _ in range(32)]
    ignored = [rng.randrange(2) for _ in range(32)]
    rig.set(
        r0=2048 + size * (np.array(to) - 1), d0=address_of(data) + size * (np.array(from_) + 1), r2=counts, p1=ignored
    )
    before = rig.cta.smem.copy()
    rig.step(0, mask)
    assert np.array_equal(rig.cta.smem, before)
    rig.step(1, mask)
    assert parks(rig.step(2, mask))
    rig.finish()
    assert rig.step(2, mask) is None
    for lane in range(32):
        if mask >> lane & 1:
            copied = size
            if form == "src-size":
                copied = counts[lane]
            elif form != "plain":
                copied = 0 if bool(ignored[lane]) == (form == "ignore") else size
            source = data[size * from_[lane] :][:copied].tolist()
            before[2048 + size * to[lane] :][:size] = source + [0] * (size - copied)
    assert np.array_equal(rig.cta.smem, before)


def test_nothing_is_read_where_nothing_is_copied() -> None:
    rig = Rig("cp.async.ca.shared.global [%r0], [%d0], 8, %r2", "cp.async.wait_all")
    data = rig.memory(noise(3), align=16)
    rig.set(r0=2048 + 8 * np.arange(32), d0=[address_of(data), 0, 77 * 8, *[0] * 29], r2=[3, *[0] * 31])
    rig.step(0)
    rig.finish()
    assert rig.step(1) is None
    got = rig.cta.smem[2048 : 2048 + 256]
    assert np.array_equal(got[:3], data)
    assert not got[3:].any()


def test_sources_in_several_allocations() -> None:
    rig = Rig("cp.async.cg.shared.global [%r0], [%d0], 16", "cp.async.wait_all")
    parts = [rig.memory(noise(256, seed)) for seed in range(4)]
    rig.set(r0=2048 + 16 * np.arange(32), d0=[address_of(parts[lane % 4]) + 16 * (lane // 4) for lane in range(32)])
    rig.step(0)
    rig.finish()
    got = rig.cta.smem[2048 : 2048 + 512].reshape(32, 16)
    for lane in range(32):
        assert np.array_equal(got[lane], parts[lane % 4][16 * (lane // 4) :][:16])


COPY = "cp.async.ca.shared.global [%r0], [%d0], 4"
GROUPS = (COPY, "cp.async.commit_group", "cp.async.wait_all", *(f"cp.async.wait_group {n}" for n in range(4)))


@pytest.mark.parametrize("seed", range(40))
def test_waits_end_when_all_but_the_recent_groups_have(seed: int) -> None:
    """Random copies, commits and waits of several lanes against a model that keeps every group of every lane."""
    rng = random.Random(seed)
    rig = Rig(*GROUPS, seed=seed)
    data = rig.memory(np.full(4, 0xA5, np.uint8))
    rig.cta.smem[:] = 0
    lanes = [0, 1, 30]
    opened: dict[int, list[int]] = {lane: [] for lane in lanes}
    committed: dict[int, list[list[int]]] = {lane: [] for lane in lanes}
    copies = 0

    def written(copy: int) -> bool:
        return bool(rig.cta.smem[2048 + 4 * copy])

    uniform = seed % 2
    for _ in range(150):
        action = rng.randrange(5)
        mask = sum(1 << lane for lane in lanes if uniform or rng.random() < 0.6) or 1
        chosen = [lane for lane in lanes if mask >> lane & 1]
        if action == 0:
            places = np.zeros(32, np.int64)
            for lane in chosen:
                places[lane] = copies
                opened[lane].append(copies)
                copies += 1
            rig.set(r0=2048 + 4 * places, d0=address_of(data))
            rig.step(0, mask)
        elif action == 1:
            rig.step(1, mask)
            for lane in chosen:
                committed[lane].append(opened[lane])
                opened[lane] = []
        elif action == 2:
            rig.machine.queues.step()
        else:
            allowed = rng.choice([-1, 0, 0, 1, 2, 3])
            if allowed < 0:
                for lane in chosen:
                    committed[lane].append(opened[lane])
                    opened[lane] = []
            waited = [
                copy
                for lane in chosen
                for group in committed[lane][: max(len(committed[lane]) - max(allowed, 0), 0)]
                for copy in group
            ]
            while parks(rig.step(3 + allowed, mask)):
                assert rig.machine.queues.step()
            assert all(map(written, waited))


def test_waits_do_not_wait_for_recent_groups() -> None:
    rig = Rig(*GROUPS)
    data = rig.memory(np.full(4, 0xA5, np.uint8))
    rig.set(d0=address_of(data), r0=2048)
    for _ in range(3):
        rig.step(0)
        rig.step(1)
    assert parks(rig.step(5))
    rig.machine.queues.run(rig.machine.queues.operations()[0])
    assert rig.step(5) is None
    assert parks(rig.step(4))
    assert rig.step(6) is None


@pytest.mark.parametrize("noinc", ["", ".noinc"])
@pytest.mark.parametrize("space", [".shared", ".shared::cta", ""])
def test_arrivals_come_after_earlier_copies(noinc: str, space: str) -> None:
    rig = Rig(COPY, f"cp.async.mbarrier.arrive{noinc}{space}.b64 [{'%r1' if space else '%d1'}]", seed=3)
    data = rig.memory(np.full(4, 0xA5, np.uint8))
    rig.cta.smem[:] = 0
    expected = 2 + (8 if noinc else 0)
    barriers = [rig.barrier(1024, expected), rig.barrier(1032, expected)]
    rig.set(d0=address_of(data), r0=2048 + 4 * np.arange(32), r1=[1024, 1032] * 16)
    rig.set(d1=SHARED_WINDOW + np.array([1024, 1032] * 16))
    mask = 0xFFFF
    rig.step(0, mask)
    rig.step(1, mask)
    rig.set(r0=4096)
    rig.step(0, 1)  # a later copy does not matter
    first, later = rig.machine.queues.operations()[0], rig.machine.queues.operations()[-1]
    assert [barrier.pending for barrier in barriers] == [expected + (0 if noinc else 8)] * 2
    rig.machine.queues.run(later)
    assert [barrier.pending for barrier in barriers] == [expected + (0 if noinc else 8)] * 2
    rig.machine.queues.run(first)
    rig.finish()
    assert [barrier.pending for barrier in barriers] == [2, 2]
    assert rig.cta.smem[2048 : 2048 + 64].all()


def test_kernels_that_never_commit_keep_no_history() -> None:
    rig = Rig(COPY, "cp.async.mbarrier.arrive.noinc.shared.b64 [%r1]")
    data = rig.memory(np.full(4, 0xA5, np.uint8))
    barrier = rig.barrier(1024, 32)
    rig.set(d0=address_of(data), r0=2048 + 4 * np.arange(32), r1=1024)
    for _ in range(500):
        rig.step(0)
        rig.step(1)
        rig.finish()
    assert barrier.phase == 500
    copies = rig.warp.scratch["cp.async"]
    assert len(copies.open) <= 66
    assert len(copies.pending) <= 66


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"r0": 2050}, "Destination address 0x802 is no multiple of 4"),
        ({"d0": 6}, "Source address 0x6 is no multiple of 4"),
        ({"d0": 8}, "in no allocation"),
        ({"r0": 64}, "shared address 0x40"),
        ({"r0": shared(2048, 1)}, "may only name its own"),
    ],
)
@pytest.mark.parametrize("mask", [1, ALL])
def test_wrong_operands_are_reported(values: dict[str, int], sentence: str, mask: int) -> None:
    rig = Rig(COPY, cluster=2)
    data = rig.memory(noise(256))
    rig.set(**({"r0": 2048, "d0": address_of(data)} | values))
    with pytest.raises(MemoryFault) as caught:
        rig.step(0, mask)
    assert sentence in str(caught.value)
    assert not rig.machine.queues.pending


def test_too_large_a_source_is_reported() -> None:
    rig = Rig("cp.async.ca.shared.global [%r0], [%d0], 4, %r2")
    data = rig.memory(noise(256))
    rig.set(r0=2048, d0=address_of(data), r2=5)
    with pytest.raises(EmulatorFault, match="src-size 5 is more than cp-size 4"):
        rig.step(0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "cp.async.cg.shared.global [%r0], [%d0], 8",
        "cp.async.ca.shared.global [%r0], [%d0], 2",
        "cp.async.ca.shared.global [%r0], [%d0], %r1",
        "cp.async.ca.shared.global.L2::cache_hint [%r0], [%d0], 4",
    ],
)
def test_forms_that_do_not_exist_fail_at_load_time(text: str) -> None:
    with pytest.raises(UnsupportedError):
        Rig(text).step(0)
