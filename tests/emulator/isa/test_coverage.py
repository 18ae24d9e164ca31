"""The forms that real Hopper and Blackwell kernels use all have a row; no opcode has two."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from megamoe_jit.emulator.isa.table import Kind, find, lookup, rows

# Written as the manual writes them; `a|b` in braces are alternatives, an empty one is none.
WANTED = """
mov.{pred|b16|b32|b64|b128|u16|u32|u64|s16|s32|s64|f32|f64}
cvta{|.to}.{global|shared|local|const|param}.u64
selp.{b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64}
prefetch.tensormap
mapa.shared::cluster.{u32|u64}
{add|sub|div|rem|min|max}.{u16|u32|u64|s16|s32|s64}
{mul|mad}.{lo|hi}.{u16|u32|u64|s16|s32|s64}
{mul|mad}.wide.{u16|u32|s16|s32}
{add|sub}.cc.{u32|u64|s32|s64}
{addc|subc}{|.cc}.{u32|u64|s32|s64}
{neg|abs}.{s16|s32|s64}
{and|or|xor}.{pred|b16|b32|b64}
not.{pred|b16|b32|b64}
shl.{b16|b32|b64}
shr.{b16|b32|b64|u16|u32|u64|s16|s32|s64}
bfe.{u32|u64|s32|s64}
bfi.{b32|b64}
bfind{|.shiftamt}.{u32|u64|s32|s64}
{brev|popc|clz}.{b32|b64}
fns.b32
prmt.b32{|.f4e|.b4e|.rc8|.ecl|.ecr|.rc16}
lop3{|.or|.and}.b32
shf.{l|r}.{wrap|clamp}.b32
dp4a.{u32|s32}.{u32|s32}
dp2a.{lo|hi}.{u32|s32}.{u32|s32}
setp.{eq|ne|lt|le|gt|ge}{|.and|.or|.xor}.{u16|u32|u64|s16|s32|s64|f16|bf16|f16x2|bf16x2|f32|f64}
setp.{lo|ls|hi|hs}.{u16|u32|u64}
setp.{equ|neu|ltu|leu|gtu|geu|num|nan}{|.ftz}.f32
set.{eq|ne|lt|le|gt|ge}.{u32|s32|f32}.{u32|s32|f32}
{add|sub|mul}{|.rn|.rz|.rm|.rp}{|.ftz}{|.sat}.f32
fma.{rn|rz|rm|rp}{|.ftz}{|.sat}.f32
{min|max}{|.ftz}{|.NaN}{|.xorsign.abs}.f32
{abs|neg}{|.ftz}.f32
{add|sub|mul}{|.rn|.rz|.rm|.rp}{|.ftz}.f32x2
fma.{rn|rz|rm|rp}{|.ftz}.f32x2
{add|sub|mul}{|.rn}.{f16|f16x2|bf16|bf16x2}
fma.rn{|.relu}.{f16|f16x2|bf16|bf16x2}
{min|max}{|.NaN}.{f16|f16x2|bf16|bf16x2}
{abs|neg}.{f16|f16x2|bf16|bf16x2}
{add|sub}{|.rn|.rz}.f32.{f16|bf16}
fma.rn.f32.{f16|bf16}
{add|sub|mul}{|.rn|.rz|.rm|.rp}.f64
fma.{rn|rz|rm|rp}.f64
{rcp|sqrt}.{rn|rz|rm|rp}{|.ftz}.f32
div.{rn|rz|rm|rp|approx|full}{|.ftz}.f32
{rcp|sqrt|rsqrt|ex2|lg2|sin|cos}.approx{|.ftz}.f32
tanh.approx.{f32|f16|f16x2|bf16|bf16x2}
ex2.approx{.f16|.f16x2|.ftz.bf16|.ftz.bf16x2}
copysign.{f32|f64}
testp.{finite|infinite|number|notanumber|normal|subnormal}.{f32|f64}
cvt{|.sat}.{u8|u16|u32|u64|s8|s16|s32|s64}.{u8|u16|u32|u64|s8|s16|s32|s64}
cvt.{rn|rz|rm|rp}.{f16|bf16|f32|f64}.{u8|u16|u32|u64|s8|s16|s32|s64}
cvt.{rni|rzi|rmi|rpi}.{u8|u16|u32|u64|s8|s16|s32|s64}.{f16|bf16|f32|f64}
cvt.{rni|rzi|rmi|rpi}{|.ftz}.f32.f32
cvt{|.ftz}.f32.{f16|bf16}
cvt{|.rn|.rz}.bf16.f16
cvt{|.rn|.rz}.f16.bf16
cvt.{rn|rz}{|.relu}{|.satfinite}.{f16|bf16|f16x2|bf16x2}.f32
cvt.{rn|rz}.f32.f64
cvt.f64.f32
cvt.rna{|.satfinite}.tf32.f32
cvt.rn.satfinite{|.relu}.{e4m3x2|e5m2x2|e2m3x2|e3m2x2|e2m1x2}.{f32|f16x2|bf16x2}
cvt.rn{|.relu}.{f16x2|bf16x2}.{e4m3x2|e5m2x2|e2m3x2|e3m2x2|e2m1x2}
cvt.rn.scaled::n2::ue8m0.bf16x2.{e4m3x2|e2m1x2}
cvt.rs{|.relu}.satfinite.{e4m3x4|e5m2x4|e2m1x4}.f32
cvt.{rz|rp}{|.satfinite}.ue8m0x2.{f32|bf16x2}
cvt.rn.bf16x2.ue8m0x2
cvt.pack.sat.{u16|s16}.s32
cvt.pack.sat.{u8|s8}.s32.b32
ld{|.global|.shared|.local|.param|.shared::cluster}{|.v2|.v4}.{b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64}
ld.global{|.nc}.v8.{b32|f32}
ld.{volatile|relaxed.cta|acquire.gpu|acquire.sys|relaxed.sys}.global.{u32|u64|b32|b64}
st{|.global|.shared|.local|.shared::cluster}{|.v2|.v4}.{b8|b16|b32|b64|u8|u16|u32|u64|f32|f64}
st.{volatile|relaxed.cta|release.gpu|release.sys|relaxed.sys}.global.{u32|u64|b32|b64}
st.async.shared::cluster.mbarrier::complete_tx::bytes{|.v2|.v4}.{b32|u32}
st.bulk.shared::cta
shfl.sync.{up|down|bfly|idx}.b32
elect.sync
vote.sync.{all|any|uni}.pred
vote.sync.ballot.b32
match.{any|all}.sync.{b32|b64}
redux.sync.{add|min|max}.{u32|s32}
redux.sync.{and|or|xor}.b32
redux.sync.{min|max}{|.abs}{|.NaN}.f32
activemask.b32
bar.warp.sync
movmatrix.sync.aligned.m8n8.trans.b16
ldmatrix.sync.aligned.m8n8.{x1|x2|x4}{|.trans}.shared.b16
ldmatrix.sync.aligned.m16n16.{x1|x2}.trans.shared.b8
ldmatrix.sync.aligned.m8n16.x1.shared.b8x16.{b4x16_p64|b6x16_p32}
stmatrix.sync.aligned.m8n8.{x1|x2|x4}{|.trans}.shared.b16
stmatrix.sync.aligned.m16n8.{x1|x2|x4}.trans.shared.b8
setmaxnreg.{inc|dec}.sync.aligned.u32
{bar|barrier|barrier.cta}.{sync|arrive}
barrier.sync.aligned
barrier.cluster.arrive{|.release|.relaxed}{|.aligned}
barrier.cluster.wait{|.acquire}{|.aligned}
fence.proxy.async{|.shared::cta|.shared::cluster|.global}
fence.mbarrier_init.release.cluster
fence.{acq_rel|sc}.{cta|cluster|gpu|sys}
griddepcontrol.{wait|launch_dependents}
atom{|.acq_rel|.relaxed}{.gpu|.sys}.{global|shared}.add.{u32|u64}
atom.global{|.sys}.cas.{b32|b64}
red{|.relaxed|.release}{.gpu|.sys}.global.add.{u32|u64|f32}
red.global.add.noftz.{bf16x2|f16x2}
red.global.v2.bf16x2.add.noftz
red.global.v4.f32.add
mbarrier.init{|.shared|.shared::cta}.b64
mbarrier.inval.shared::cta.b64
mbarrier.arrive{|.shared|.shared::cta}.b64
mbarrier.arrive.release.cluster.shared::cluster.b64
mbarrier.arrive.expect_tx{|.release.cta}.shared::cta.b64
mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64
mbarrier.expect_tx.relaxed.cta.shared::cta.b64
mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64
mbarrier.{test_wait|try_wait}{|.parity}.shared::cta.b64
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes{|.multicast::cluster}
cp.async.bulk.global.shared::cta.bulk_group
cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes
cp.async.bulk.tensor.{1d|2d|3d|4d|5d}.shared::cluster.global.tile.mbarrier::complete_tx::bytes{|.multicast::cluster}
cp.async.bulk.tensor.2d.cta_group::2.shared::cluster.global.mbarrier::complete_tx::bytes
cp.async.bulk.tensor.{1d|2d|3d|4d|5d}.global.shared::cta.tile.bulk_group
cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group
cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32
cp.async.bulk.commit_group
cp.async.bulk.wait_group{|.read}
wgmma.fence.sync.aligned
wgmma.commit_group.sync.aligned
wgmma.wait_group.sync.aligned
wgmma.mma_async.sync.aligned.m64n64k16.f32.{bf16.bf16|f16.f16}
wgmma.mma_async.sync.aligned.m64n128k32.f32.{e4m3.e4m3|e5m2.e4m3}
wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32
wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8
bra{|.uni}
brx.idx
call.uni
ret
exit
trap
nanosleep.u32
"""
BLACKWELL = """
tcgen05.alloc.cta_group::{1|2}.sync.aligned{|.shared::cta}.b32
tcgen05.dealloc.cta_group::{1|2}.sync.aligned.b32
tcgen05.relinquish_alloc_permit.cta_group::{1|2}.sync.aligned
tcgen05.ld.sync.aligned.{32x32b|16x64b|16x128b}.{x1|x2|x16|x64}.b32
tcgen05.ld.sync.aligned.16x256b.{x1|x2|x32}.b32
tcgen05.st.sync.aligned.{32x32b|16x64b|16x128b|16x256b}.{x1|x4|x32}.b32
tcgen05.wait::{ld|st}.sync.aligned
tcgen05.fence::{before|after}_thread_sync
tcgen05.cp.cta_group::{1|2}.32x128b.warpx4
tcgen05.cp.cta_group::{1|2}.{128x256b|4x256b|128x128b}
tcgen05.mma.cta_group::{1|2}.kind::{f16|tf32|f8f6f4|i8}
tcgen05.mma.cta_group::{1|2}.kind::mxf8f6f4.block_scale{|.scale_vec::1X|.block32}
tcgen05.mma.cta_group::{1|2}.kind::mxf4nvf4.block_scale{.scale_vec::4X|.block16}
tcgen05.mma.cta_group::{1|2}.kind::mxf4.block_scale{|.scale_vec::2X|.block32}
tcgen05.commit.cta_group::{1|2}.mbarrier::arrive::one.shared::cluster{|.multicast::cluster}.b64
mma.sync.aligned.m16n8k16.row.col.f32.{bf16.bf16|f16.f16}.f32
mma.sync.aligned.m16n8k32.row.col.f32.{e4m3.e4m3|e5m2.e5m2}.f32
"""


def spelled(line: str) -> list[str]:
    """Return the opcodes of a line, without those in which two dots meet or none stands between words."""
    parts = [part.split("|") for part in re.split(r"\{([^{}]*)\}", line)]
    for index in range(0, len(parts), 2):
        parts[index] = ["|".join(parts[index])]
    opcodes = ["".join(choice) for choice in itertools.product(*parts)]
    return [opcode for opcode in opcodes if ".." not in opcode and not opcode.endswith(".")]


def opcodes_of(text: str) -> list[str]:
    return [opcode for line in text.split("\n") if line.strip() for opcode in spelled(line.strip())]


@pytest.mark.parametrize("text", [WANTED, BLACKWELL], ids=["common", "blackwell"])
def test_every_form_has_a_row(text: str) -> None:
    missing = [opcode for opcode in opcodes_of(text) if find(opcode) is None]
    assert not missing, f"{len(missing)} opcodes: {missing[:60]}"


def test_no_opcode_has_two_rows() -> None:
    # Loads and copies have spellings by the million; `find` looks at those that kernels use.
    counts = Counter(opcode for row in rows() if row.kind is Kind.PURE for opcode in row.opcodes())
    repeated = [opcode for opcode, count in counts.items() if count > 1]
    assert not repeated, repeated[:20]
    assert len(counts) > 5000


def test_every_row_has_a_section_and_a_meaning() -> None:
    for row in rows():
        assert row.section, row.pattern.text
        if row.kind is Kind.NOOP:
            assert row.reason, row.pattern.text
        if row.kind in (Kind.PURE, Kind.HANDLER, Kind.MEMORY):
            assert row.function is not None
            assert row.function.__doc__, f"{row.function.__module__}.{row.function.__name__} says nothing"


def test_orders_of_qualifiers_are_one_form() -> None:
    for other, first in (
        ("fma.ftz.rn.f32", "fma.rn.ftz.f32"),
        ("cvt.rn.relu.satfinite.e2m1x2.f32", "cvt.rn.satfinite.relu.e2m1x2.f32"),
        ("add.sat.ftz.rn.f32", "add.rn.ftz.sat.f32"),
        ("max.NaN.ftz.f32", "max.ftz.NaN.f32"),
    ):
        assert lookup(other).row is lookup(first).row
        assert lookup(other).form.opcode in (other, first)
