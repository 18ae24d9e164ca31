import dataclasses
from typing import Any

import pytest

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.activation import ActivationSpec


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "silu"}, "activation='silu' is unknown. Use one of swiglu, gelu, relu2"),
        ({"alpha": float("nan")}, "must both be finite"),
        ({"up_bias": float("inf")}, "must both be finite"),
        ({"clamp": -1.0}, "activation_clamp=-1.0 must be a finite number >= 0"),
        ({"clamp": float("inf")}, "activation_clamp=inf"),
        ({"clamp": float("nan")}, "activation_clamp=nan"),
        ({"kind": "gelu", "alpha": 1.702}, "alpha=1.702 has no meaning"),
        ({"kind": "relu2", "up_bias": 1.0}, "up_bias=1.0 has no meaning"),
    ],
)
def test_bad_activations_are_refused_in_words(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        ActivationSpec(**fields)


def test_activations_compare_hash_and_say_whether_they_gate() -> None:
    assert ActivationSpec(clamp=7) == ActivationSpec(clamp=7.0)
    assert len({ActivationSpec(), ActivationSpec(kind="gelu"), ActivationSpec()}) == 2
    assert [ActivationSpec(kind=kind).gated for kind in ("swiglu", "gelu", "relu2")] == [True, True, False]  # type: ignore[arg-type]
    assert ActivationSpec.swigluoai() == ActivationSpec(kind="swiglu", alpha=1.702, up_bias=1.0, clamp=7.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ActivationSpec().alpha = 2.0  # type: ignore[misc]
