"""Parameter blocks against the structs of the templates, as ctypes lays them out."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import FrozenInstanceError

import pytest

from megamoe_jit.recipes.params import MEGA_MOE_PARAMS, STAGING_PARAMS, SYM_PARTS, ParamBlock
from tests.recipes.param_structs import MegaMoeParams, StagingParams, SymOffsets

BLOCKS = [(MEGA_MOE_PARAMS, MegaMoeParams, (0xABCDEF,)), (STAGING_PARAMS, StagingParams, ())]


def fields(twin: type[ctypes.Structure]) -> dict[str, tuple[int, int]]:
    """Return (offset, bytes) of each field by the block's names: those of SymOffsets begin with sym_."""
    found: dict[str, tuple[int, int]] = {}
    for name, *_ in twin._fields_:
        place = getattr(twin, name)
        if name == "sym":
            found |= {f"sym_{part}": (place.offset + getattr(SymOffsets, part).offset, 8) for part in SYM_PARTS}
        elif name != "peers":
            found[name] = (place.offset, place.size)
    return found


@pytest.mark.parametrize(("block", "twin", "peers"), BLOCKS)
def test_every_field_lies_where_c_puts_it(
    block: ParamBlock, twin: type[ctypes.Structure], peers: tuple[int, ...]
) -> None:
    names = [*block.quads, *(name for name, _ in block.words)]
    wanted = fields(twin)
    assert names == list(wanted)
    assert {name: block.offset(name, num_ranks=len(peers) or 1) for name in names} == {
        name: offset for name, (offset, _) in wanted.items()
    }
    assert block.num_bytes(num_ranks=1) == ctypes.sizeof(twin)


@pytest.mark.parametrize(("block", "twin", "peers"), BLOCKS)
def test_packed_bytes_read_back_as_the_struct(
    block: ParamBlock, twin: type[ctypes.Structure], peers: tuple[int, ...]
) -> None:
    values: dict[str, int | float] = {name: 0x0123456789AB0000 + i for i, name in enumerate(block.quads)}
    values |= {name: 2.5 + i if code == "f" else 0xF0000000 + i for i, (name, code) in enumerate(block.words)}
    packed = block.pack(values, peers=peers)
    assert len(packed) == ctypes.sizeof(twin)
    read = twin.from_buffer_copy(packed)
    seen = {name: getattr(read, name) for name in fields(twin) if not name.startswith("sym_")}
    seen |= {f"sym_{part}": getattr(read.sym, part) for part in SYM_PARTS}
    assert seen == values
    if peers:
        assert tuple(read.peers) == peers


def test_a_peer_table_moves_every_field() -> None:
    assert MEGA_MOE_PARAMS.offset("sym_tokens", num_ranks=8) == 64
    assert MEGA_MOE_PARAMS.num_bytes(num_ranks=8) == MEGA_MOE_PARAMS.num_bytes(num_ranks=1) + 56
    assert STAGING_PARAMS.num_bytes(num_ranks=8) == STAGING_PARAMS.num_bytes(num_ranks=1)


def test_an_odd_number_of_words_is_padded_to_eight_bytes() -> None:
    block = ParamBlock(has_peer_table=False, quads=("a",), words=(("b", "I"), ("c", "f"), ("d", "I")))
    assert block.num_bytes(num_ranks=1) == 24
    assert block.pack({"a": 1, "b": 2, "c": 0.5, "d": 3}) == struct.pack("<QIfI4x", 1, 2, 0.5, 3)
    assert [block.offset(name, num_ranks=1) for name in "abcd"] == [0, 8, 12, 16]


def test_a_missing_value_is_named() -> None:
    with pytest.raises(KeyError, match="x_sf"):
        STAGING_PARAMS.pack(dict.fromkeys([name for name in STAGING_PARAMS.quads if name != "x_sf"], 0))


def test_blocks_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        STAGING_PARAMS.quads = ()  # type: ignore[misc]
