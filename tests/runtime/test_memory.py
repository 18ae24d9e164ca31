"""The record that a kernel leaves before it stops itself."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from megamoe_jit.errors import LaunchError
from megamoe_jit.recipes.waits import WAITS
from megamoe_jit.runtime.driver import Driver
from megamoe_jit.runtime.memory import CLAIMED, MAGIC, RECORD_BYTES, WORDS, error_record, raise_if_failed
from tests.runtime.fake_driver import FakeDriver

TEMPLATE = Path(__file__).parents[2] / "templates" / "comm" / "wait.cuh"


def write(fake: FakeDriver, *words: int) -> None:
    """Write words where a kernel would."""
    for index, word in enumerate(words):
        ctypes.c_uint32.from_buffer(fake.host_memory, 4 * index).value = word


def test_the_record_is_pinned_mapped_zeroed_and_one_a_device() -> None:
    fake = FakeDriver()
    driver = Driver(fake)
    record = error_record(0, driver=driver)
    assert error_record(0, driver=driver) is record
    assert error_record(1, driver=driver) is not record
    size, flags = next(args for name, args in fake.calls if name == "cuMemHostAlloc")
    assert (size, flags) == (RECORD_BYTES, fake.CU_MEMHOSTALLOC_PORTABLE | fake.CU_MEMHOSTALLOC_DEVICEMAP)
    assert bytes(fake.host_memory[:RECORD_BYTES]) == bytes(RECORD_BYTES)
    assert record.device_pointer == ctypes.addressof(fake.host_memory) + (1 << 47)
    assert record.report() is None
    record.raise_if_failed()


def test_a_complete_record_is_told_in_words() -> None:
    fake = FakeDriver()
    record = error_record(2 - 1, waits={4: "L1 of a token tile"}, driver=Driver(fake))
    write(fake, MAGIC, 4, 17, 160, 33, 6, 5, 2)
    report = record.report()
    assert report is not None
    assert (report.block, report.thread, report.index, report.expected, report.seen, report.rank) == (
        17,
        160,
        33,
        6,
        5,
        2,
    )
    cause = RuntimeError("unspecified launch failure")
    with pytest.raises(
        LaunchError,
        match=re.escape(
            "a kernel on cuda:1 stopped itself: rank 2, block 17, thread 160 gave up waiting for L1 of a token tile "
            "(index 33: expected 6, saw 5). Waits end after MEGAMOE_JIT_TIMEOUT_S seconds"
        ),
    ) as caught:
        record.raise_if_failed(cause=cause)
    assert caught.value.__cause__ is cause
    with pytest.raises(LaunchError, match="gave up waiting for another table"):
        record.raise_if_failed({4: "another table"})
    record.clear()
    record.raise_if_failed()


def test_codes_have_the_names_of_the_kernels_by_default() -> None:
    fake = FakeDriver()
    record = error_record(0, driver=Driver(fake))
    code, words = next(iter(WAITS.items()))
    write(fake, MAGIC, code, 0, 0, 0, 0, 0, 0)
    with pytest.raises(LaunchError, match=re.escape(f"gave up waiting for {words} (index 0")):
        record.raise_if_failed()
    write(fake, MAGIC, 999)
    with pytest.raises(LaunchError, match="gave up waiting for wait code 999"):
        record.raise_if_failed()


def test_an_unfinished_record_is_told_as_such() -> None:
    fake = FakeDriver()
    record = error_record(0, driver=Driver(fake))
    write(fake, CLAIMED)
    with pytest.raises(LaunchError, match="a thread began to record why it stopped the kernel, and did not finish"):
        record.raise_if_failed()


def test_asking_for_a_failure_allocates_nothing() -> None:
    fake = FakeDriver()
    driver = Driver(fake)
    raise_if_failed(0, driver=driver)
    assert fake.calls == []
    error_record(0, driver=driver)
    write(fake, MAGIC, 1)
    with pytest.raises(LaunchError, match="stopped itself"):
        raise_if_failed(0, driver=driver)
    raise_if_failed(1, driver=driver)


def test_a_record_that_cannot_be_allocated_is_told_in_words() -> None:
    fake = FakeDriver()
    fake.errors["cuMemHostAlloc"] = 2
    with pytest.raises(LaunchError, match="allocating the error record in pinned host memory failed in cuMemHostAlloc"):
        error_record(0, driver=Driver(fake))


def test_kernels_write_the_same_words() -> None:
    text = TEMPLATE.read_text()
    declared = re.search(r"struct ErrorRecord \{\s*uint32_t ([^;]*);", text)
    assert declared is not None
    assert tuple(declared[1].split(", ")) == WORDS
    magic = re.search(r"kErrorMagic = (0x[0-9A-Fa-f]+)", text)
    assert magic is not None
    assert int(magic[1], 16) == MAGIC
    assert f"atomicCAS_system(&record->magic, 0u, {CLAIMED}u)" in text
