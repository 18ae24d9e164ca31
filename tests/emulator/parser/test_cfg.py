"""Blocks are checked by their definition, liveness against a search of paths, on random functions."""

import random

import pytest

from megamoe_jit.emulator.parser import Function, Instruction, LabelOp, RegOp, Symbol, blocks, liveness
from megamoe_jit.emulator.parser.cfg import accesses
from tests.emulator.parser.samples import parse_entry


def _random_function(rng: random.Random) -> Function:
    count = rng.randrange(1, 25)
    lines: list[str] = []
    for index in range(count):
        lines.append(f"L{index}:")
        kind = rng.random()
        guard = rng.choice(["", "", "@p0 ", "@!p1 "])
        a, b, c = (f"r{rng.randrange(5)}" for _ in range(3))
        target = f"L{rng.randrange(count)}"
        if kind < 0.4:
            lines.append(f"{guard}add.s32 {a}, {b}, {c};")
        elif kind < 0.5:
            lines.append(f"{guard}setp.eq.s32 p{rng.randrange(2)}, {a}, 0;")
        elif kind < 0.6:
            lines.append(f"{guard}st.shared.u32 [{a}], {b};")
        elif kind < 0.7:
            lines.append(f"{guard}bar.sync 0;")
        elif kind < 0.85:
            lines.append(f"{guard}bra {target};")
        elif kind < 0.9:
            lines.append(f"T{index}: .branchtargets {target}, L{rng.randrange(count)}; brx.idx {a}, T{index};")
        else:
            lines.append(f"{guard}{rng.choice(['ret', 'exit'])};")
    return parse_entry(".reg .b32 r<5>; .reg .pred p<2>;" + "\n".join(lines))


def _next(function: Function, index: int) -> list[int]:
    """Where control may go from one instruction, by the manual."""
    instruction = function.instructions[index]
    falls = [index + 1] if index + 1 < len(function.instructions) else []
    if instruction.base == "bra":
        (label,) = instruction.operands
        assert isinstance(label, LabelOp)
        return [label.target] + (falls if instruction.guard else [])
    if instruction.base == "brx":
        table = instruction.operands[1]
        assert isinstance(table, Symbol)
        return list(function.branch_tables[table.name]) + (falls if instruction.guard else [])
    if instruction.base in ("ret", "exit"):
        return falls if instruction.guard else []
    return falls


def _is_stop(instruction: Instruction) -> bool:
    return ".sync" in instruction.opcode


def test_blocks_by_definition() -> None:
    rng = random.Random(6)
    for _ in range(200):
        function = _random_function(rng)
        found = blocks(function, _is_stop)
        assert [block.start for block in found] == [0] + [block.end for block in found[:-1]]
        assert found[-1].end == len(function.instructions)
        starts = {block.start: number for number, block in enumerate(found)}
        for block in found:
            inside = function.instructions[block.start : block.end]
            assert len(inside) == 1 or not any(_is_stop(instruction) for instruction in inside)
            assert not any(instruction.base in ("bra", "brx", "ret", "exit") for instruction in inside[:-1])
            assert sorted(block.successors) == sorted({starts[index] for index in _next(function, block.end - 1)})
        for index in range(len(function.instructions)):
            for target in _next(function, index):
                assert target == index + 1 or target in starts


def test_liveness_is_what_a_path_can_read() -> None:
    rng = random.Random(7)
    for _ in range(150):
        function = _random_function(rng)
        found = blocks(function, _is_stop)
        live = liveness(function, found)
        for reg in function.registers:
            wanted = [_is_read_from(function, block.start, reg.index) for block in found]
            assert [reg.index in state.live_in for state in live] == wanted
            for block, state in zip(found, live, strict=True):
                after = any(_is_read_from(function, index, reg.index) for index in _next(function, block.end - 1))
                assert (reg.index in state.live_out) == after


def _is_read_from(function: Function, start: int, register: int) -> bool:
    """Whether some path from `start` reads the register before an unguarded write."""
    waiting, seen = [start], {start}
    while waiting:
        index = waiting.pop()
        instruction = function.instructions[index]
        names = [operand.reg.index for operand in instruction.operands if isinstance(operand, RegOp)]
        if instruction.base in ("add", "setp"):
            reads, writes = names[1:], names[:1]
        elif instruction.base == "st":
            address = instruction.operands[0]
            reads, writes = [*names, address.base.reg.index], []
        else:
            reads, writes = names, []
        if instruction.guard is not None:
            reads.append(instruction.guard[0].index)
        if register in reads:
            return True
        if register in writes and instruction.guard is None:
            continue
        for target in _next(function, index):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return False


@pytest.mark.parametrize(
    ("text", "reads", "writes"),
    [
        ("mov.b32 a, b", "b", "a"),
        ("@p mov.b32 a, b", "bp", "a"),
        ("mov.b64 {a, b}, q", "q", "ab"),
        ("mov.b64 q, {a, b}", "ab", "q"),
        ("setp.eq.s32 p|r, a, b", "ab", "pr"),
        ("selp.b32 a, b, c, p", "bcp", "a"),
        ("ld.global.v2.b32 {a, b}, [q+4]", "q", "ab"),
        ("st.global.v2.b32 [q], {a, b}", "qab", ""),
        ("st.async.weak.shared::cluster.b32 [a], b, [c]", "abc", ""),
        ("atom.global.add.u32 a, [q], b", "qb", "a"),
        ("red.global.add.u32 [q], b", "qb", ""),
        ("and.pred p, p, !r", "pr", "p"),
        ("mbarrier.init.shared::cta.b64 [a], b", "ab", ""),
        ("mbarrier.arrive.shared::cta.b64 q, [a]", "a", "q"),
        ("mbarrier.arrive.shared::cta.b64 _, [a], b", "ab", ""),
        ("mbarrier.try_wait.parity.shared::cta.b64 p, [a], b", "ab", "p"),
        ("cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [a], [q, {b, c}], [d]", "aqbcd", ""),
        ("bar.sync a, b", "ab", ""),
        ("barrier.cta.arrive a, b", "ab", ""),
        ("bar.red.popc.u32 a, b, c, p", "bcp", "a"),
        ("bar.warp.sync a", "a", ""),
        ("elect.sync a|p, b", "b", "ap"),
        ("shfl.sync.bfly.b32 a|p, b, c, d, e", "bcde", "ap"),
        ("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {a, b}, q, u, p, 1, 1", "abqup", "ab"),
        ("wgmma.wait_group.sync.aligned 0", "", ""),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {a}, {b}, {c}, {d}", "bcd", "a"),
        ("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [a], b", "ab", ""),
        ("tcgen05.dealloc.cta_group::1.sync.aligned.b32 a, b", "ab", ""),
        ("tcgen05.ld.sync.aligned.32x32b.x2.b32 {a, b}, [c]", "c", "ab"),
        ("tcgen05.ld.red.sync.aligned.32x32b.x2.min.f32 {a, b}, c, [d]", "d", "abc"),
        ("tcgen05.ld.sync.aligned.16x32bx2.x2.b32 {a, b}, [c], 2", "c", "ab"),
        ("tcgen05.st.sync.aligned.32x32b.x2.b32 [c], {a, b}", "abc", ""),
        ("tcgen05.mma.cta_group::1.kind::f16 [a], q, u, b, p", "aqubp", ""),
        ("nanosleep.u32 a", "a", ""),
        ("prefetch.tensormap [q]", "q", ""),
        ("stmatrix.sync.aligned.m8n8.x2.shared.b16 [a], {b, c}", "abc", ""),
        ("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {b, c}, [a]", "a", "bc"),
        ("brx.idx a, T", "a", ""),
        ("multimem.red.global.add.u32 [q], a", "qa", ""),
        ("multimem.ld_reduce.global.add.u32 a, [q]", "q", "a"),
        ("griddepcontrol.wait", "", ""),
        ("cvta.to.global.u64 q, u", "u", "q"),
    ],
)  # fmt: skip
def test_accesses(text: str, reads: str, writes: str) -> None:
    function = parse_entry(
        f".reg .b32 a, b, c, d, e; .reg .b64 q, u; .reg .pred p, r;\n T: .branchtargets L;\n {text};\n L: ret;"
    )
    names = {reg.index: reg.name for reg in function.registers}
    found = accesses(function.instructions[0])
    assert {names[index] for index in found.reads} == set(reads)
    assert {names[index] for index in found.writes} == set(writes)
