"""What compilers of others leave out and hardware forgives has kinds of its own; the rest is still judged."""

from __future__ import annotations

import pytest
import torch

from megamoe_jit.emulator.api import Emulator
from megamoe_jit.errors import RaceFault

HEAD = """.version 8.7
.target sm_100a
.address_size 64
.visible .entry k(.param .u64 out) {
    .reg .pred %p<4>; .reg .b32 %r<8>; .reg .b64 %rd<4>;
    .shared .align 128 .b8 memory[1024];
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, memory;
"""
TAIL = """
    bar.sync 0;
    setp.ne.u32 %p3, %r1, 0;
    @%p3 ret;
    ld.shared.b32 %r7, [%r2];
    st.global.b32 [%rd1], %r7;
    ret;
}
"""


def kind_of(body: str, *suppress: str) -> str | None:
    """Return the kind of the fault of a kernel of two warps, or None."""
    module = Emulator(suppress=suppress).load(HEAD + body + TAIL)
    try:
        module.launch("k", 1, 64, args=[torch.zeros(4, dtype=torch.int32)])
    except RaceFault as fault:
        kind: str = fault.report.kind  # type: ignore[attr-defined]
        return kind
    return None


ONE_STORE = "mov.b32 %r3, 7; st.shared.b32 [%r2], %r3;"
TWO_STORES = """
    mov.b32 %r3, 7;
    setp.lt.u32 %p1, %r1, 32;
    @%p1 st.shared.b32 [%r2], %r3;
    @!%p1 st.shared.b32 [%r2], %r3;
"""


def test_one_instruction_of_two_warps_is_told_from_two_instructions() -> None:
    assert kind_of(ONE_STORE) == "same-store"
    assert kind_of(ONE_STORE, "same-store") is None
    assert kind_of(TWO_STORES, "same-store") == "race"
    assert kind_of(TWO_STORES.replace("@!%p1 st", "bar.sync 0; @!%p1 st")) is None


INIT = """
    setp.eq.u32 %p1, %r1, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r2+64], 64;
    @%p1 fence.mbarrier_init.release.cluster;
    barrier.cluster.arrive.relaxed.aligned;
    barrier.cluster.wait.aligned;
    mbarrier.arrive.shared::cta.b64 _, [%r2+64];
"""


@pytest.mark.parametrize(
    ("fence", "arrive", "is_known"),
    [(True, ".relaxed", True), (False, ".relaxed", False), (False, "", True), (True, "", True)],
)
def test_a_fenced_mbarrier_is_known_after_a_relaxed_cluster_barrier(
    arrive: str, *, fence: bool, is_known: bool
) -> None:
    body = INIT.replace(".relaxed", arrive)
    body = body if fence else body.replace("@%p1 fence.mbarrier_init.release.cluster;", "")
    assert (kind_of(body) is None) == is_known


def test_a_fence_after_the_barrier_shows_nobody_anything() -> None:
    lines = INIT.splitlines()
    late = "\n".join([*lines[:3], *lines[4:6], lines[3], *lines[6:]])
    assert kind_of(late) == "race"


COPY = """
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra DONE;
    mov.b32 %r3, 7;
    st.shared.b32 [%r2], %r3;
    mbarrier.init.shared::cta.b64 [%r2+64], 1;
    fence.mbarrier_init.release.cluster;
    fence.proxy.async.shared::cta;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2+64], 16;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], 16, [%r2+64];
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2+64], 0;
    @!%p2 bra WAIT;
DONE:
"""
INIT_FENCE, PROXY_FENCE = "fence.mbarrier_init.release.cluster;", "fence.proxy.async.shared::cta;"


def test_fences_that_a_copy_needs_are_told_apart() -> None:
    assert kind_of(COPY) is None
    without = COPY.replace(PROXY_FENCE, "")
    assert kind_of(without) == "proxy-overwrite"
    assert kind_of(without, "proxy-overwrite") is None
    neither = without.replace(INIT_FENCE, "")
    assert kind_of(neither, "proxy-overwrite") == "mbarrier-init-fence"
    assert kind_of(neither, "proxy-overwrite", "mbarrier-init-fence") is None
    # What a copy reads is not forgiven with what it overwrites.
    store = COPY.replace("[%r2], [%rd1], 16, [%r2+64]", "[%rd1], [%r2], 16").replace(
        "shared::cluster.global.mbarrier::complete_tx::bytes", "global.shared::cta.bulk_group"
    )
    store = store[: store.index("WAIT:")].replace("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2+64], 16;", "")
    store += "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;\nDONE:\n"
    assert kind_of(store) is None
    assert kind_of(store.replace(PROXY_FENCE, ""), "proxy-overwrite") == "proxy"
