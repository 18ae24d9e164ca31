"""Kernels that peers compile at their first call, compiled ahead in parallel processes: each calls on zero weights.

    python -m benchmarks.peers.warm CONTENDER WORKLOAD TOKENS...     # one such process

Their caches on disk then hold the kernels for the process that measures.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from benchmarks.peers.contender import Kind, Run
from benchmarks.peers.kinds import BY_NAME
from benchmarks.peers.layer import Layer
from benchmarks.peers.measure import reason
from benchmarks.peers.workload import WORKLOADS, TokenSet, Workload, make_sets
from megamoe_jit.formats.moe_weights import Checkpoint, MoeWeights

# A library that starts compilers for every core in each process that warms it would start too many.
_ENVIRONMENT = {"HUMMING_MAX_PARALLEL_BUILD_WORKERS": "2"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one process compiles."""

    kind: str
    workload: str
    tokens: tuple[int, ...]

    @property
    def command(self) -> list[str]:
        """The process's command."""
        words = [self.kind, self.workload, *map(str, self.tokens)]
        return [sys.executable, "-m", "benchmarks.peers.warm", *words]


def jobs_of(kinds: Iterable[Kind], tokens: Mapping[str, Sequence[int]]) -> list[Job]:
    """Return the jobs for the token counts of each workload, those that compile most first."""
    jobs = []
    for kind in kinds:
        for workload, counts in tokens.items():
            unique = tuple(sorted(set(counts)))
            if kind.warm == "workload":
                jobs.append(Job(kind=kind.name, workload=workload, tokens=unique))
            elif kind.warm == "tokens":
                jobs += [Job(kind=kind.name, workload=workload, tokens=(count,)) for count in unique]
    return sorted(jobs, key=lambda job: -len(job.tokens))


def run_jobs(jobs: Sequence[Job], processes: int, seconds: float, log: Callable[[str], None]) -> None:
    """Run the jobs, `processes` at a time, until all are done or `seconds` are over.

    What fails or is late is logged, and left to the measuring process.
    """
    end = time.monotonic() + seconds

    def run(job: Job) -> None:
        start = time.monotonic()
        name = f"{job.kind} {job.workload} {' '.join(map(str, job.tokens))}"
        if start >= end:
            log(f"not compiled ahead, no time left: {name}")
            return
        # In a session of its own, so that its compilers end with it.
        with subprocess.Popen(
            job.command,
            env=os.environ | _ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as child:
            try:
                output = child.communicate(timeout=end - start)[0]
                outcome = "" if child.returncode == 0 else " FAILED"
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                output, outcome = "", " stopped"
        log(f"compiled ahead: {name}, {time.monotonic() - start:.0f} s{outcome}")
        if outcome and output.strip():
            log(output.strip()[-1000:])

    with ThreadPoolExecutor(max(1, processes)) as pool:
        for done in [pool.submit(run, job) for job in jobs]:
            done.result()


def zero_layer(workload: Workload, device: torch.device | str) -> Layer:
    """Return a layer whose codes are zeros and whose scales are ones, in both formats."""
    e, h, i = workload.num_experts, workload.hidden, workload.intermediate

    def weights(checkpoint: Checkpoint, gran_k: int, one: int) -> MoeWeights:
        sf_dtype = torch.float8_e4m3fn if checkpoint == "nvfp4" else torch.float8_e8m0fnu

        def codes(rows: int, k: int) -> torch.Tensor:
            return torch.zeros(e, rows, k // 2, dtype=torch.uint8, device=device)

        def sf(rows: int, k: int) -> torch.Tensor:
            return torch.full((e, rows, k // gran_k), one, dtype=torch.uint8, device=device).view(sf_dtype)

        return MoeWeights(
            l1_codes=codes(2 * i, h),
            l1_sf=sf(2 * i, h),
            l1_alphas=torch.ones(e, 2, device=device),
            l2_codes=codes(h, i),
            l2_sf=sf(h, i),
            l2_alphas=torch.ones(e, device=device),
            checkpoint=checkpoint,
        )

    known: dict[Checkpoint, MoeWeights] = {"nvfp4": weights("nvfp4", 16, 0x38), "mxfp4": weights("mxfp4", 32, 127)}
    return Layer(workload=workload, device=device, known=known)


def main(args: Sequence[str]) -> int:
    """Compile and call one contender; what one variant raises is printed, and the others go on."""
    kind, workload, tokens = BY_NAME[args[0]], WORKLOADS[args[1]], [int(count) for count in args[2:]]
    contender = kind.load()(zero_layer(workload, "cuda"), max(tokens))
    contender.compile_for(tokens)
    is_good = True
    for count in tokens:
        inputs = make_sets(workload, "uniform", count, device="cuda", count=1)[0]
        for name, make in contender.variants(count):
            error = _call(make, inputs)
            if error is not None:
                is_good = False
                print(f"{count} tokens, {name}: {reason(error)}", flush=True)
    return 0 if is_good else 1


def _call(make: Callable[[], Run], inputs: TokenSet) -> Exception | None:
    try:
        make()(inputs)
        torch.cuda.synchronize()
    except Exception as error:  # of others' code: any
        return error
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
