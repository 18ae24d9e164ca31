"""A static model of one call of the fused kernel: bytes, MMA cycles, resources, and the time that they imply.

A model, never a measurement: everything here is arithmetic over a configuration and published peak figures. A kernel is
slower than its floor; by how much, only a run on the device says.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from megamoe_jit.arch import Arch
from megamoe_jit.errors import ArgumentError
from megamoe_jit.layouts.weights_sm90 import Sm90Element, sm90_layouts
from megamoe_jit.recipes.choose import MoeConfig, choose_config
from megamoe_jit.recipes.gpus import Gpu, Rate, gpus_for
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import Recipe
from megamoe_jit.recipes.sm90 import SF_GRAN_K, Sm90Config
from megamoe_jit.recipes.sm100 import Sm100Config

NOTICE = "a model, not a measurement: arithmetic over the configuration and published peak figures"
TMEM_COLUMNS = 512
DEFAULT_LATENCY_NS = 800.0  # assumed, from a load's issue to its arrival under load: no datasheet states one
_SMEM_BYTES_PER_CYCLE = 128  # 32 banks of 4 bytes (CUDA C++ Programming Guide, "Shared Memory")
_CTA_ROWS = 128  # weight rows of one CTA's MMA on Blackwell
_OPERAND_ROW_BYTES = 32  # that one tcgen05.mma reads of a row, whatever its kind
_MMA_COLUMN_STEP = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """Expectations over uniform routing: each token takes any `num_topk` experts with equal chance.

    `columns` are those of all token tiles' MMAs, a tile's last ones partly empty.
    """

    rows: int
    touched_experts: float
    token_tiles: float
    columns: float


def expect_routing(problem: Problem, num_tokens: int, block_n: int, widths: tuple[int, ...]) -> Routing:
    """Return the expectations for tiles of `block_n` tokens whose MMAs have the narrowest of `widths` that holds them.

    An expert's tokens are binomial: each of `num_tokens` comes with probability num_topk / num_experts.
    """
    share = problem.num_topk / problem.num_experts
    touched = 1.0 if share >= 1 else -math.expm1(num_tokens * math.log1p(-share))
    tiles = columns = 0.0
    for count in range(1, num_tokens + 1):
        chance = _binomial(num_tokens, count, share)
        full, rest = divmod(count, block_n)
        width = next(w for w in widths if w >= rest) if rest else 0
        tiles += chance * (full + (rest > 0))
        columns += chance * (full * widths[-1] + width)
    e = problem.num_experts
    return Routing(
        rows=num_tokens * problem.num_topk, touched_experts=e * touched, token_tiles=e * tiles, columns=e * columns
    )


def _binomial(n: int, k: int, p: float) -> float:
    if p >= 1:
        return float(k == n)
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    return math.exp(log)


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Expected bytes of one kind of data in a call: each byte once, as memory would serve it through a perfect cache.

    `must_move` data have to cross the memory's pins; the rest is written and read within the launch, and the L2 cache
    may keep it. `requested_bytes` is what the SMs load and store in all, from wherever it lies.
    """

    name: str
    read_bytes: float
    written_bytes: float
    must_move: bool
    requested_bytes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One GEMM's padded shape and tiles: a token tile takes `m_tiles` tiles, each of `k_stages` stages."""

    name: str
    rows: int
    k: int
    tile_m: int
    m_tiles: int
    k_stages: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A named share of a resource, in the resource's unit."""

    name: str
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerEstimate:
    """One GEMM on one device. Cycles are of one CTA, at the dense peak rate; a mean tile has the mean columns.

    `operand_cycles` is how long a mean tile's operands take from shared memory if the tensor core reads it at
    128 B a cycle, as threads do: an assumption, not part of the floor (None where weights come from registers).
    `waves` is tiles over the groups of SMs that take one at a time.
    """

    name: str
    tiles: float
    waves: float
    tile_cycles: float
    full_tile_cycles: float
    operand_cycles: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What the model says of a device: the floor is the larger of `memory_us` and `mma_us`.

    `memory_us` moves only what must cross the memory's pins; `streamed_us` all of Traffic, as if no cache kept any.
    `operand_us` is the time of LayerEstimate's operand_cycles, which the floor leaves out.
    `in_flight_bytes` are weights and their scale factors in all SMs' stages, `needed_bytes` bandwidth x latency.
    """

    gpu: Gpu
    clock_hz: float
    num_groups: int
    layers: tuple[LayerEstimate, ...]
    memory_us: float
    streamed_us: float
    mma_us: float
    operand_us: float | None
    in_flight_bytes: int
    needed_bytes: float

    @property
    def floor_us(self) -> float:
        """The time that no run at these peaks can beat, with weights that no cache holds from the call before."""
        return max(self.memory_us, self.mma_us)

    @property
    def bound_by(self) -> str:
        """Which of the two is the floor."""
        return "memory" if self.memory_us >= self.mma_us else "MMA"


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model, not a measurement, of one call of the fused kernel (staging is another launch, and not in it)."""

    config: MoeConfig
    reason: str
    others: tuple[str, ...]
    num_tokens: int
    rate: Rate
    routing: Routing
    traffic: tuple[Traffic, ...]
    layers: tuple[Layer, ...]
    tmem: tuple[Part, ...]
    smem: tuple[Part, ...]
    stage_bytes: int
    latency_ns: float
    estimates: tuple[Estimate, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the model as JSON values, with the notice that it is one."""
        p, c = self.config.problem, self.config
        return {
            "notice": NOTICE,
            "is_measurement": False,
            "recipe": c.recipe.name,
            "arch": c.arch.name,
            "hidden": p.hidden,
            "intermediate": p.intermediate,
            "num_experts": p.num_experts,
            "num_topk": p.num_topk,
            "activation": p.activation.kind,
            "num_tokens": self.num_tokens,
            "config": {
                "kernel": c.kernel_name,
                "block_n": c.block_n,
                "cta_group": group_sms(c),
                "num_stages": c.num_stages,
                "num_threads": c.num_threads,
                "ring_tiles": c.ring_tiles if isinstance(c, Sm100Config) else None,
            },
            "reason": self.reason,
            "others": list(self.others),
            "rate": self.rate.value,
            "routing": asdict(self.routing),
            "traffic": [asdict(item) for item in self.traffic],
            "layers": [asdict(layer) for layer in self.layers],
            "tmem_columns": {part.name: part.size for part in self.tmem},
            "smem_bytes": {part.name: part.size for part in self.smem},
            "stage_bytes": self.stage_bytes,
            "latency_ns": self.latency_ns,
            "estimates": [_estimate_json(estimate) for estimate in self.estimates],
        }


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    gpu = estimate.gpu
    return {
        **asdict(estimate),
        "gpu": gpu.name,
        "source": gpu.source,
        "num_sms": gpu.num_sms,
        "bytes_per_s": gpu.bytes_per_s,
        "peak_flops": {rate.value: flops for rate, flops in gpu.peak_flops},
        "floor_us": estimate.floor_us,
        "bound_by": estimate.bound_by,
    }


def model_call(
    problem: Problem,
    recipe: str | Recipe,
    arch: str | Arch,
    num_tokens: int,
    *,
    latency_ns: float = DEFAULT_LATENCY_NS,
) -> Model:
    """Return the model of a call of `num_tokens` tokens with the configuration that `choose_config` takes for it.

    Raises UnsupportedError where no kernel serves the call, ArgumentError for tokens that buffers do not hold.
    """
    if not 1 <= num_tokens <= problem.max_tokens_per_rank:
        raise ArgumentError(
            f"num_tokens={num_tokens}, but the buffers hold 1 to {problem.max_tokens_per_rank}. "
            "Pass a number in that range, or a larger max_tokens_per_rank."
        )
    if not (math.isfinite(latency_ns) and latency_ns > 0):
        raise ArgumentError(f"latency_ns={latency_ns} is no latency. Pass a positive number of nanoseconds.")
    choice = choose_config(problem, recipe, arch, num_tokens)
    return model_config(choice.config, num_tokens, reason=choice.reason, others=choice.others, latency_ns=latency_ns)


def model_config(
    config: MoeConfig,
    num_tokens: int,
    *,
    reason: str = "given",
    others: tuple[str, ...] = (),
    latency_ns: float = DEFAULT_LATENCY_NS,
) -> Model:
    """Return the model of a call of `num_tokens` tokens with `config`."""
    layers, rate = layers_of(config), rate_of(config)
    routing = expect_routing(config.problem, num_tokens, config.block_n, mma_widths(config))
    traffic = traffic_of(config, num_tokens, routing)
    return Model(
        config=config,
        reason=reason,
        others=others,
        num_tokens=num_tokens,
        rate=rate,
        routing=routing,
        traffic=traffic,
        layers=layers,
        tmem=tmem_parts(config),
        smem=smem_parts(config),
        stage_bytes=_stage_bytes(config)[0],
        latency_ns=latency_ns,
        estimates=tuple(
            _estimate(config, gpu, rate, routing, traffic, layers, latency_ns) for gpu in gpus_for(config.arch)
        ),
    )


def rate_of(config: MoeConfig) -> Rate:
    """Return the rate that the configuration's MMAs run at: kind mxf8f6f4 multiplies FP4 weights as FP8."""
    if isinstance(config, Sm90Config):
        return Rate.FP8 if config.shapes.is_fp8 else Rate.BF16
    return Rate.FP8 if config.kind.name == "mxf8f6f4" else Rate.FP4


def mma_widths(config: MoeConfig) -> tuple[int, ...]:
    """Return the columns that a tile's MMAs can have, narrowest first."""
    if isinstance(config, Sm90Config):
        return config.mma_widths
    return tuple(range(_MMA_COLUMN_STEP, config.block_n + 1, _MMA_COLUMN_STEP))


def group_sms(config: MoeConfig) -> int:
    """Return how many SMs share a tile."""
    return config.cta_group if isinstance(config, Sm100Config) else 1


def layers_of(config: MoeConfig) -> tuple[Layer, Layer]:
    """Return L1 and L2 as the kernel pads and tiles them."""
    c = config.constants()
    tile_m = config.tile_m if isinstance(config, Sm100Config) else int(c["block_m"])
    l1, l2 = (
        Layer(
            name=name.upper(),
            rows=rows,
            k=k,
            tile_m=tile_m,
            m_tiles=int(c[f"{name}_m_tiles"]),
            k_stages=int(c[f"{name}_k_stages"]),
        )
        for name, (rows, k) in zip(("l1", "l2"), _padded_shapes(config), strict=True)
    )
    return l1, l2


def _padded_shapes(config: MoeConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (rows, K) of both weights."""
    if isinstance(config, Sm90Config):
        s = config.shapes
        return (s.l1_rows, s.hidden_k), (s.hidden_padded, s.intermediate_padded)
    l1, l2 = config.shapes.layouts()
    return (l1.total_rows, l1.padded_k), (l2.total_rows, l2.padded_k)


def traffic_of(config: MoeConfig, num_tokens: int, routing: Routing) -> tuple[Traffic, ...]:
    """Return the expected bytes of a call by what they are; alphas, biases, flags and counters are left out."""
    own = (
        _traffic_sm90(config, num_tokens, routing)
        if isinstance(config, Sm90Config)
        else _traffic_sm100(config, num_tokens, routing)
    )
    p, rows = config.problem, routing.rows
    index = float(rows * (p.topk_idx_bytes + 4))
    partials = float(rows * config.shapes.hidden_padded * 2)
    y = float(num_tokens * p.hidden * 2)
    return (
        *own,
        Traffic(name="routing", read_bytes=index, written_bytes=0, must_move=True, requested_bytes=index),
        _within("partials", partials, partials),
        Traffic(name="y", read_bytes=0, written_bytes=y, must_move=True, requested_bytes=y),
    )


def _within(name: str, num_bytes: float, loaded_bytes: float) -> Traffic:
    """Return the traffic of data that the launch writes and reads again, in all `loaded_bytes` of it."""
    return Traffic(
        name=name,
        read_bytes=num_bytes,
        written_bytes=num_bytes,
        must_move=False,
        requested_bytes=num_bytes + loaded_bytes,
    )


def _weights(name: str, expert_bytes: int, routing: Routing) -> Traffic:
    return Traffic(
        name=name,
        read_bytes=expert_bytes * routing.touched_experts,
        written_bytes=0,
        must_move=True,
        requested_bytes=expert_bytes * routing.token_tiles,
    )


def _tokens(row_bytes: int, num_tokens: int, requested_bytes: float) -> Traffic:
    return Traffic(
        name="tokens",
        read_bytes=row_bytes * num_tokens,
        written_bytes=0,
        must_move=True,
        requested_bytes=requested_bytes,
    )


def _traffic_sm100(config: Sm100Config, num_tokens: int, routing: Routing) -> tuple[Traffic, ...]:
    p, s, rows = config.problem, config.shapes, routing.rows
    l1, l2 = s.layouts()
    source = s.row_bytes(p.hidden) + -(-p.hidden // s.kind.gran_k) + (4 if s.has_token_scales else 0)
    ring, acts = (s.row_bytes(layout.padded_k) + layout.num_words * 4 for layout in (l1, l2))
    # A tile of one layer loads all of a token tile's rows, and each CTA all of its scale factors.
    atoms = config.token_atoms * 512 * config.cta_group
    loaded = [
        routing.token_tiles
        * (layout.total_rows // config.tile_m)
        * (config.block_n * s.row_bytes(layout.padded_k) + atoms * layout.num_words)
        for layout in (l1, l2)
    ]
    lists = rows * (12 if s.has_token_scales else 8)
    return (
        _weights("weights", sum(layout.total_rows * layout.padded_k // 2 for layout in (l1, l2)), routing),
        _weights("weight scale factors", sum(layout.total_rows * layout.num_words * 4 for layout in (l1, l2)), routing),
        _tokens(source, num_tokens, source * rows),
        _within("lists of routed tokens", lists, lists),
        _within("ring of tokens", ring * rows, loaded[0]),
        _within("activations", acts * rows, loaded[1]),
    )


def _traffic_sm90(config: Sm90Config, num_tokens: int, routing: Routing) -> tuple[Traffic, ...]:
    p, s, rows = config.problem, config.shapes, routing.rows
    layouts = sm90_layouts(
        hidden=p.hidden,
        intermediate=p.intermediate,
        gated=p.activation.gated,
        element=Sm90Element.E4M3 if s.is_fp8 else Sm90Element.BF16,
    )
    expert_bytes = sum(layout.bytes_per_expert for layout in layouts)  # 8 bytes of codes, then one scale byte
    l1, l2 = layers_of(config)
    source = s.hidden_k * s.act_bytes + (4 if s.is_fp8 else 0)
    acts = s.intermediate_padded * s.act_bytes + (s.intermediate_padded // SF_GRAN_K * 4 if s.is_fp8 else 0)
    lists = rows * 12
    return (
        _weights("weights", expert_bytes * 8 // 9, routing),
        _weights("weight scale factors", expert_bytes // 9, routing),
        _tokens(source, num_tokens, source * rows * l1.m_tiles * config.num_passes),
        _within("lists of routed tokens", lists, lists),
        _within("activations", acts * rows, acts * rows * l2.m_tiles * config.num_passes),
    )


def tmem_parts(config: MoeConfig) -> tuple[Part, ...]:
    """Return the columns of tensor memory by use; together they are what the kernel allocates. Empty on Hopper."""
    if isinstance(config, Sm90Config):
        return ()
    used = (
        Part(name="accumulators", size=config.num_accums * config.block_n),
        Part(name="weight scale factors", size=4 * config.sf_words),
        Part(name="token scale factors", size=4 * config.sf_words * config.token_atoms),
    )
    return (*used, Part(name="unused", size=config.tmem_columns - sum(part.size for part in used)))


def smem_parts(config: MoeConfig) -> tuple[Part, ...]:
    """Return a block's shared memory by use; together the parts are `smem_bytes`."""
    parts = tuple(Part(name=field.name, size=field.num_bytes) for field in config.shared_storage().fields)
    return (*parts, Part(name="alignment", size=config.smem_bytes - sum(part.size for part in parts)))


def _stage_bytes(config: MoeConfig) -> tuple[int, int]:
    """Return the bytes that a stage's loads bring to a CTA, and those of weights and their scale factors among them."""
    if isinstance(config, Sm90Config):
        return config.token_stage_bytes + config.weight_stage_bytes, config.weight_stage_bytes
    scales = config.sf_words * 512
    weights = _CTA_ROWS * (64 if config.kind.pads_weights else 128) + scales
    return weights + config.load_n * 128 + config.token_atoms * scales, weights


def _estimate(
    config: MoeConfig,
    gpu: Gpu,
    rate: Rate,
    routing: Routing,
    traffic: tuple[Traffic, ...],
    layers: tuple[Layer, ...],
    latency_ns: float,
) -> Estimate:
    num_groups, clock_hz = gpu.num_sms // group_sms(config), gpu.clock_hz(rate)
    estimates = tuple(_layer_estimate(config, layer, gpu.cycle_macs(rate), routing, num_groups) for layer in layers)
    cycles = sum(layer.tiles * layer.tile_cycles for layer in estimates) / num_groups
    operands = [layer.tiles * layer.operand_cycles for layer in estimates if layer.operand_cycles is not None]
    must = sum(item.read_bytes + item.written_bytes for item in traffic if item.must_move)
    everything = sum(item.read_bytes + item.written_bytes for item in traffic)
    return Estimate(
        gpu=gpu,
        clock_hz=clock_hz,
        num_groups=num_groups,
        layers=estimates,
        memory_us=must / gpu.bytes_per_s * 1e6,
        streamed_us=everything / gpu.bytes_per_s * 1e6,
        mma_us=cycles / clock_hz * 1e6,
        operand_us=sum(operands) / num_groups / clock_hz * 1e6 if operands else None,
        in_flight_bytes=config.num_stages * _stage_bytes(config)[1] * gpu.num_sms,
        needed_bytes=gpu.bytes_per_s * latency_ns * 1e-9,
    )


def _layer_estimate(
    config: MoeConfig, layer: Layer, cycle_macs: int, routing: Routing, num_groups: int
) -> LayerEstimate:
    rows = layer.tile_m // group_sms(config)
    columns = routing.columns / routing.token_tiles
    tiles = routing.token_tiles * layer.m_tiles
    operand_cycles: float | None = None
    if isinstance(config, Sm100Config):
        mmas = layer.k // config.kind.mma_k
        operand_rows = rows + columns / config.cta_group
        operand_cycles = mmas * operand_rows * _OPERAND_ROW_BYTES / _SMEM_BYTES_PER_CYCLE
    return LayerEstimate(
        name=layer.name,
        tiles=tiles,
        waves=tiles / num_groups,
        tile_cycles=rows * columns * layer.k / cycle_macs,
        full_tile_cycles=rows * config.block_n * layer.k / cycle_macs,
        operand_cycles=operand_cycles,
    )
