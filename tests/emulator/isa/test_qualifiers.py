"""Qualifiers in any order, and nothing else."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from megamoe_jit.emulator.isa.table import Kind, find

LOAD = ["2d", "shared::cluster", "global", "tile", "mbarrier::complete_tx::bytes", "cta_group::2", "L2::cache_hint"]


def test_every_order_is_one_form() -> None:
    rng = random.Random(1)
    orders = list(itertools.permutations(LOAD))
    for order in rng.sample(orders, 200):
        op = find("cp.async.bulk.tensor." + ".".join(order))
        assert op is not None
        assert op.kind is Kind.HANDLER


@pytest.mark.parametrize(
    "opcode",
    [
        "cp.async.bulk.tensor.2d.2d.shared::cluster.global.mbarrier::complete_tx::bytes",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.frobnicate",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.tile.im2col",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.weak.relaxed",
        "atom.global.add.add.u32",
        "red.global.add.u32.u32",
        "ldmatrix.sync.aligned.m8n8.x1.x2.b16",
    ],
)
def test_wrong_words_and_repeated_ones_are_unknown(opcode: str) -> None:
    started = time.perf_counter()
    assert find(opcode) is None
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "opcode",
    [
        "cp.async.bulk.prefetch.L2.global",
        "cp.async.bulk.prefetch.L2.global.L2::cache_hint",
        "cp.async.bulk.prefetch.tensor.2d.L2.global.tile",
        "cp.async.bulk.prefetch.tensor.2d.L2.global.tile::gather4.L2::cache_hint",
    ],
)
def test_prefetches_are_named_no_ops(opcode: str) -> None:
    op = find(opcode)
    assert op is not None
    assert op.kind is Kind.NOOP
    assert op.reason == "caches are not modelled"
