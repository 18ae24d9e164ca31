"""Bad inputs of the calls that make and fill buffers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from megamoe_jit import RankMismatchError, UnsupportedError, get_recipe
from megamoe_jit.arch import get_arch
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.runtime.symmetric import SymmBuffer, estimate_buffer
from tests.ops.bad_rows import DESTROYED, NO_TENSOR, NOT_MADE_FOR_IT, OVERLAP, Bad, X, routing_rows
from tests.ops.layers import TOKENS, Group, buffer, destroyed, fill, routing, stage, tokens


def problem(**changes: Any) -> Problem:
    """Return the problem of the layer."""
    sizes = {"hidden": 128, "intermediate": 128, "num_experts": 4, "num_topk": 2, "max_tokens_per_rank": 16}
    return Problem(**{**sizes, **changes})


def symm_buffer(**changes: Any) -> SymmBuffer:
    """Make a buffer without the public function's checks."""
    nouns = {"problem": problem(), "recipe": get_recipe("fp8_nvfp4"), "arch": get_arch("sm_90a")}
    return SymmBuffer(**{**nouns, "device": torch.device("cpu"), **changes})


def sizes(name: str, low: int, high: int, argument: str | None = None) -> list[Bad]:
    """Return the rows of one size of get_symm_buffer: too small, too large, and what is no integer."""
    argument = argument or name
    words = rf"{name}={{}}, but kernels take an integer from {low} to {high}\. Pass one in that range"
    values: tuple[Any, ...] = (low - 1, -1, high + 1, float(low), str(low), None, True)
    return [
        Bad(f"{name}={value!r}", lambda value=value: buffer(**{argument: value}), words.format(re.escape(repr(value))))
        for value in values
    ]


def e8m0(columns: int) -> torch.Tensor:
    """Return UE8M0 scales of one for each token."""
    return torch.full((TOKENS, columns), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)


def e4m3(columns: int) -> torch.Tensor:
    """Return UE4M3 scales of one for each token."""
    return torch.ones(TOKENS, columns).to(torch.float8_e4m3fn)


def too_many(run: Callable[..., Any]) -> Bad:
    """Return the row on more tokens than the buffer holds."""
    idx, weight = routing(17)
    return Bad(
        "more tokens than the capacity",
        lambda: run(x=tokens(17), topk_idx=idx, topk_weights=weight),
        r"17 tokens were given, and the buffer holds 16\. Split the batch, or make it with a larger",
    )


BUFFER = [
    *sizes("hidden", 1, 65536),
    *sizes("intermediate", 1, 65536, "intermediate_hidden"),
    *sizes("num_experts", 1, 384),
    *sizes("num_topk", 1, 16),
    *sizes("max_tokens_per_rank", 1, 65536, "num_max_tokens_per_rank"),
    Bad("more slots than experts", lambda: buffer(num_topk=5), r"num_topk=5 is more than num_experts=4; .* smaller"),
    Bad("group of no class", lambda: buffer(group="world"), r"group is a str, but a torch\.distributed process group"),
    Bad("not a member", lambda: buffer(group=-100), r"group is a int, .* that this process is in, or None"),
    Bad("experts do not divide", lambda: buffer(group=Group(3)), r"num_experts=4 does not divide among num_ranks=3"),
    Bad("two ranks", lambda: buffer(group=Group(2)), r"group has 2 ranks, .* Pass group=None", UnsupportedError),
    Bad("too many ranks", lambda: buffer(num_experts=292, group=Group(73)), r"num_ranks=73, .* from 1 to 72"),
    Bad("rank beyond", lambda: buffer(group=Group(1, 1)), rf"rank 1 of 1, {NOT_MADE_FOR_IT}", RankMismatchError),
    Bad("rank below", lambda: buffer(group=Group(1, -1)), rf"rank -1 of 1, {NOT_MADE_FOR_IT}", RankMismatchError),
    Bad(
        "group of another size",
        lambda: symm_buffer(problem=problem(num_ranks=2), group=None),
        r"group has 1 ranks, and the problem was made for num_ranks=2\. Use the same group for both",
        RankMismatchError,
    ),
    Bad(
        "unknown recipe",
        lambda: buffer(recipe="fp4"),
        r"recipe='fp4' is unknown\. Use one of nvfp4_n",
        UnsupportedError,
    ),
    Bad("recipe as a tuple", lambda: buffer(recipe=(1, 1, 16)), r"recipe=\(1, 1, 16\) is unknown", UnsupportedError),
    Bad("recipe as a list", lambda: buffer(recipe=[1, 1, 16]), r"recipe=\[1, 1, 16\] is unknown", UnsupportedError),
    Bad(
        "unknown arch",
        lambda: buffer(arch="sm_80"),
        r"arch='sm_80' is not a known target\. Use one of",
        UnsupportedError,
    ),
    Bad(
        "arch as a list", lambda: buffer(arch=["sm_90a"]), r"arch=\['sm_90a'\] is not a known target", UnsupportedError
    ),
    Bad("arch without recipes", lambda: buffer(arch="sm_120a"), r"no recipe runs .* on sm_120a", UnsupportedError),
    Bad(
        "recipe of another arch",
        lambda: buffer(recipe="nvfp4_nvfp4", arch="sm_90a"),
        r"nvfp4_nvfp4 runs on sm_100a.* target is sm_90a\. Choose recipe fp8_nvfp4 or .* or another target",
        UnsupportedError,
    ),
    Bad(
        "recipe of an arch without any",
        lambda: buffer(recipe="fp8_nvfp4", arch="sm_121a"),
        r"Choose recipe \(there is none\) for it, or another target",
        UnsupportedError,
    ),
    Bad("no device", lambda: buffer(device="gpu"), r"device='gpu' is no device \(.*\)\. Pass a CUDA device or the CPU"),
    Bad(
        "device of no class",
        lambda: buffer(device=[0]),
        r"device=\[0\] is no device \(.*\)\. Pass a CUDA device or the",
    ),
    Bad("other device type", lambda: buffer(device="meta"), r"device='meta', but kernels run on CUDA devices"),
    Bad("int16 indices", lambda: buffer(topk_idx_dtype=torch.int16), r"torch\.int16, but indices are torch\.int32 or"),
    Bad("dtype as text", lambda: buffer(topk_idx_dtype="int64"), r"topk_idx_dtype=int64, but indices are torch\.int32"),
    Bad(
        "index width",
        lambda: problem(topk_idx_bytes=2),
        r"topk_idx_bytes=2, but indices are int32 \(4\) or int64 \(8\)\. Pass one of them",
    ),
    Bad(
        "block scales do not divide hidden",
        lambda: buffer(recipe="nvfp4_nvfp4", hidden=100, packed_sf=False),
        r"hidden=100, but recipe nvfp4_nvfp4 needs a multiple of 16 .* Pad hidden with zeros to 112",
    ),
    Bad(
        "odd hidden of 4-bit tokens",
        lambda: estimate_buffer(problem(hidden=101), get_recipe("mxfp4_mxfp4")),
        r"hidden=101, but recipe mxfp4_mxfp4 needs a multiple of 32 .* to 128",
    ),
    Bad(
        "words that are not full",
        lambda: buffer(recipe="nvfp4_nvfp4", hidden=80),
        r"hidden=80 gives 5 scale factors a token, which do not fill whole int32 words\. Use packed_sf=False",
    ),
    Bad("view of nothing", lambda: destroyed().view("x", torch.uint8, (1,)), DESTROYED),
]


STAGE = [
    *routing_rows(stage),
    too_many(stage),
    Bad(
        "float32 tokens",
        lambda: stage(x=X.float()),
        r"x is torch\.float32 \[6, 128\], but torch\.bfloat16 \[6, 128\] is",
    ),
    Bad("float16 tokens", lambda: stage(x=X.half()), r"x is torch\.float16 .* Convert or reshape it"),
    Bad("other hidden", lambda: stage(x=X[:, :64]), r"x is torch\.bfloat16 \[6, 64\], but .* hidden as in the buffer"),
    Bad(
        "other rows than routing", lambda: stage(x=X[:5]), r"x is torch\.bfloat16 \[5, 128\], .* \(rows as in topk_idx"
    ),
    Bad("3-d tokens", lambda: stage(x=X[None]), r"x is torch\.bfloat16 \[1, 6, 128\], but"),
    Bad("tokens as a list", lambda: stage(x=X.tolist()), "x " + NO_TENSOR.format("list")),
    Bad("tokens elsewhere", lambda: stage(x=X.to("meta")), r"x is on meta, but the buffer is on cpu\. Move it there"),
    Bad("transposed tokens", lambda: stage(x=X.T.contiguous().T), rf"x \[6, 128\] has strides \[1, 6\], but {OVERLAP}"),
    Bad("expanded tokens", lambda: stage(x=X[:1].expand(6, -1)), rf"x \[6, 128\] has strides \[0, 1\], but {OVERLAP}"),
    Bad("overlapping rows", lambda: stage(x=X.as_strided((6, 128), (64, 1))), rf"strides \[64, 1\], but {OVERLAP}"),
    Bad("no buffer", lambda: stage(sym_buffer=None), r"sym_buffer is a NoneType\. Pass what get_symm_buffer_for"),
    Bad("destroyed buffer", lambda: stage(sym_buffer=destroyed()), DESTROYED),
    Bad(
        "unknown backend", lambda: stage(backend="gpu"), r"backend='gpu' is no backend\. Use one of cuda, emulator, ref"
    ),
    Bad(
        "kernels on the CPU", lambda: stage(backend="cuda"), r"backend='cuda' runs kernels on a GPU, and .* are on cpu"
    ),
]

CODES = r"Quantise them with the recipe's quantiser, or let stage_tokens do it"
FILL = [
    *routing_rows(fill),
    Bad(
        "tokens not quantised",
        lambda: fill(x=X),
        rf"x is torch\.bfloat16 .* torch\.float8_e4m3fn \[6, 128\] .* {CODES}",
    ),
    Bad(
        "other 8-bit floats",
        lambda: fill(x=X.to(torch.float8_e5m2)),
        r"x is torch\.float8_e5m2 .* need torch\.float8_e4",
    ),
    Bad(
        "as many bytes of wider ones", lambda: fill(x=X[:, :64].half()), r"x is torch\.float16 \[6, 64\], and 6 tokens"
    ),
    Bad(
        "words for codes",
        lambda: fill(x=torch.zeros(6, 32, dtype=torch.int32)),
        r"x is torch\.int32 \[6, 32\], and 6 tok",
    ),
    Bad("fewer codes", lambda: fill(x=fill().x[:5]), r"x is torch\.float8_e4m3fn \[5, 128\], and 6 tokens"),
    Bad("flat codes", lambda: fill(x=fill().x[:6].flatten()), r"x is torch\.float8_e4m3fn \[768\], and 6 tokens"),
    Bad("scalar", lambda: fill(x=torch.zeros((), dtype=torch.uint8)), r"x is torch\.uint8 \[\], and 6 tokens"),
    Bad("codes as a list", lambda: fill(x=[1]), "x " + NO_TENSOR.format("list")),
    Bad(
        "codes elsewhere",
        lambda: fill(x=X.to(torch.float8_e4m3fn).to("meta")),
        r"x is on meta, but the buffer is on cpu",
    ),
    Bad(
        "no codes",
        lambda: fill(x=None),
        r"x is missing, and recipe fp8_nvfp4 needs torch\.float8_e4m3fn \[num_tokens, 128",
    ),
    Bad(
        "no scales",
        lambda: fill(x_sf=None),
        r"x_sf is missing, and .* needs torch\.float32 \[num_tokens\]\. See SymmBuf",
    ),
    Bad("float64 scales", lambda: fill(x_sf=torch.ones(6).double()), r"x_sf is torch\.float64 \[6\], and 6 tokens"),
    Bad("a column of scales", lambda: fill(x_sf=torch.ones(6, 1)), r"x_sf is torch\.float32 \[6, 1\], and 6 tokens"),
    Bad("scales elsewhere", lambda: fill(x_sf=torch.ones(6).to("meta")), r"x_sf is on meta, but the buffer is on cpu"),
    Bad("scales of a BF16 recipe", lambda: fill("bf16_nvfp4", x_sf=torch.ones(6)), r"x_sf is given, and .* needs none"),
    Bad(
        "second-level scales of FP8",
        lambda: fill(x_scales=torch.ones(6)),
        r"x_scales is given, and .* fp8_nvfp4 needs no",
    ),
    Bad(
        "no second level",
        lambda: fill("nvfp4_nvfp4", x_scales=None),
        r"x_scales is missing, .* needs torch\.float32 \[num",
    ),
    Bad(
        "two codes a byte",
        lambda: fill("nvfp4_nvfp4", x=torch.zeros(6, 128, dtype=torch.uint8)),
        r"need torch\.uint8 \[6, 64",
    ),
    Bad(
        "tokens for 4-bit",
        lambda: fill("mxfp4_mxfp4", x=X),
        r"x is torch\.bfloat16 \[6, 128\], .* torch\.uint8 \[6, 64\]",
    ),
    Bad(
        "UE8M0 for UE4M3",
        lambda: fill("nvfp4_nvfp4", x_sf=e8m0(8)),
        r"x_sf is torch\.float8_e8m0fnu \[6, 8\], and 6 tok",
    ),
    Bad(
        "UE4M3 for UE8M0",
        lambda: fill("mxfp8_mxfp4", x_sf=e4m3(4)),
        r"x_sf is torch\.float8_e4m3fn \[6, 4\], and 6 tokens",
    ),
    Bad(
        "scales of other blocks",
        lambda: fill("nvfp4_nvfp4", x_sf=e4m3(4)),
        r"x_sf is torch\.float8_e4m3fn \[6, 4\], and",
    ),
    Bad(
        "float32 block scales",
        lambda: fill("mxfp8_nvfp4", x_sf=torch.ones(6, 4)),
        r"x_sf is torch\.float32 \[6, 4\], and",
    ),
    Bad("destroyed buffer", lambda: fill(sym_buffer=destroyed()), DESTROYED),
]
