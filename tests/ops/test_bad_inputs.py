"""Every bad input of the public calls, one a row, gets its sentence.

No input may end in an error of torch, CUDA or Python, in a hang, or in a result that is wrong without a word.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megamoe_jit import ArgumentError, MegaMoeError, get_arch, get_recipe
from megamoe_jit.ops import checks
from megamoe_jit.runtime.symmetric import SymmBuffer
from tests.ops.bad_buffers import BUFFER, FILL, STAGE
from tests.ops.bad_calls import CALL, LAYER
from tests.ops.bad_rows import Bad
from tests.ops.layers import HIDDEN, TOKENS, buffer, call, fill, layer_call, stage

TABLES = {"get_symm_buffer": BUFFER, "stage_tokens": STAGE, "fill": FILL, "fp8_nvfp4_mega_moe": CALL, "MegaMoE": LAYER}
ROWS = [pytest.param(row, id=f"{table}-{row.name}") for table, rows in TABLES.items() for row in rows]


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_BACKEND", "reference")


@pytest.mark.parametrize("row", ROWS)
def test_a_bad_input_gets_its_sentence(row: Bad) -> None:
    with pytest.raises(MegaMoeError, match=row.words) as caught:
        row.run()
    assert type(caught.value) is row.error
    # What is wrong, then what to do: more than one sentence, the last one closed.
    assert re.search(r"[.;] [A-Z(]", str(caught.value))
    assert str(caught.value).endswith((".", ")"))


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in [*FILL[:-1], *STAGE[:-4]]])
def test_a_refused_input_leaves_the_buffer_alone(row: Bad, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SymmBuffer] = []

    def remember(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        made.append(args[0])

    original = SymmBuffer.__init__
    monkeypatch.setattr(SymmBuffer, "__init__", remember)
    with pytest.raises(MegaMoeError):
        row.run()
    refused = made[-1]
    assert bool((refused.topk_idx == -1).all())
    assert not refused.x.view(torch.uint8).any()
    assert refused.num_staged is None


def test_no_gpu_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:0"):
        with pytest.raises(
            ArgumentError, match=rf"device='{device}', but torch .* sees no GPU\. Pass device=\"cpu\" for"
        ):
            buffer(device=device)
    assert buffer(device=None).device == torch.device("cpu")


def test_a_device_without_an_index_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert [str(checks.check_device(device)) for device in (None, "cuda", "cuda:1", "cpu")] == [
        "cuda:3",
        "cuda:3",
        "cuda:1",
        "cpu",
    ]


def test_a_gpu_decides_the_arch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "device_info", lambda device: SimpleNamespace(arch=get_arch("sm_103f")))
    assert checks.default_arch(torch.device("cuda", 0), get_recipe("fp8_nvfp4")).name == "sm_103f"
    assert checks.default_arch(torch.device("cpu"), get_recipe("mxfp4_mxfp4")).name == "sm_100a"
    assert checks.default_arch(torch.device("cpu")).name == "sm_90a"


def test_no_memory_is_told_in_words_and_keeps_its_class() -> None:
    """Frameworks catch torch.OutOfMemoryError to try a smaller buffer."""

    def out_of_memory(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 136 GiB.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "zeros", out_of_memory)
        with pytest.raises(
            torch.OutOfMemoryError, match=r"no memory for a symmetric buffer of \d+ B .* smaller num_max_tok"
        ):
            buffer()


def test_a_valid_call_is_not_refused() -> None:
    """The rows above change one argument of calls that work."""
    assert call().shape == layer_call().shape == (TOKENS, HIDDEN)
    assert fill().num_staged is None
    assert stage().num_staged == TOKENS
