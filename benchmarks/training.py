"""`make bench-training`: LoRA fine-tuning, Everlearn's trainer against TRL's.

Both get the same model, first weights, samples in the same order, rank, batch, optimiser and loss
(the mean over trained tokens), so their loss curves have to agree, which is measured. TRL's
SFTTrainer runs padded and padding-free, and the faster of the two is the baseline; its GRPOTrainer
is given the rollouts, so that training alone is timed. Each runs in a process of its own, in turn,
so that its peak memory is its own and what the machine does meanwhile meets all.

Tokens are those of the samples, each counted whole: what is shared or padded does not change them.
The share of the matrix peak counts the products that had to be done for the tokens computed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from adapters.base_model import WHEEL
from benchmarks import scored_edits
from benchmarks.results import ROOT, Aim, Results
from benchmarks.training_cases import CASES, SEED
from server.embedded.up import prepare_model
from workers.training import ALLOCATOR

EVERLEARN = "everlearn"
TOGETHER = "edits together"
CURVE_AIM = Aim(0.05, is_at_least=False, of_ratio=False)
_CHILD_TIMEOUT_S = 3600


def main(arguments: list[str] | None = None) -> int:
    """Measure what has not been measured at this commit; exit status 0."""
    options = _parse(arguments)
    setup = (
        f"{options.steps} steps, {options.rounds} rounds, {options.edits} edits, "
        f"{options.threads or 'all'} threads, {options.precision}"
    )
    results = Results("training", setup=setup, seed=SEED, again=options.again)
    with tempfile.TemporaryDirectory(prefix="bench-training-") as scratch:
        model = options.model or prepare_model(WHEEL, Path(scratch)).path
        for case in options.cases or CASES:
            if not results.has(case):
                _measure_case(results, case, model, options)
        if not results.has(TOGETHER):
            _measure_edits(results, model, options)
        if not results.has(scored_edits.CASE):
            scored_edits.measure(
                results,
                model,
                Path(scratch) / "engine",
                edits=options.edits,
                rounds=options.rounds,
                threads=options.threads or os.cpu_count() or 1,
            )
    return 0


def _measure_case(results: Results, case: str, model: Path, options: argparse.Namespace) -> None:
    rivals = CASES[case].rivals
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (EVERLEARN, *rivals)}
    for _ in range(options.rounds):
        for name, found in runs.items():
            found.append(_child(name, case, model, options))
    speed = {name: median(run["tokens_per_s"] for run in found) for name, found in runs.items()}
    best = max(rivals, key=speed.__getitem__)
    ours, theirs = runs[EVERLEARN], runs[best]
    aim = Aim(CASES[case].aim)
    results.add(case, "tokens", speed[EVERLEARN], "tokens/s", baseline=speed[best], aim=aim)
    results.add(
        case, "peak memory", _mid(ours, "peak_mib"), "MiB", baseline=_mid(theirs, "peak_mib")
    )
    share, baseline = _mid(ours, "peak_share"), _mid(theirs, "peak_share")
    results.add(case, "share of matrix peak", share, "", baseline=baseline)
    curve = CASES[case].curve
    gap = _gap(ours[0][curve], theirs[0][curve])
    results.add(case, f"largest relative gap of {curve}", gap, "", aim=CURVE_AIM)
    results.finish(case)


def _measure_edits(results: Results, model: Path, options: argparse.Namespace) -> None:
    """The training part of scoring self-edits: all at once, and one after another."""
    together, serial = (
        median(
            _child(name, TOGETHER, model, options)["seconds_per_edit"]
            for _ in range(options.rounds)
        )
        for name in ("many", "one-by-one")
    )
    results.add(TOGETHER, "trained", 1 / together, "edits/s", baseline=1 / serial)
    results.finish(TOGETHER)


def _child(name: str, case: str, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    order = {
        "contender": name,
        "case": case,
        "model": str(model),
        "steps": options.steps,
        "edits": options.edits,
        "threads": options.threads,
        "precision": options.precision,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_contender", json.dumps(order)],
        cwd=ROOT,
        env={**ALLOCATOR, **os.environ},
        stdout=subprocess.PIPE,
        text=True,
        timeout=_CHILD_TIMEOUT_S,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def _mid(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(median(run[key] for run in runs))


def _gap(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder; SmolLM2-135M if not given")
    parser.add_argument("--cases", nargs="*", choices=CASES, help="all if not given")
    parser.add_argument("--steps", type=int, default=24, help="optimiser steps, warm-up included")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument("--edits", type=int, default=5, help="adapters trained at once")
    parser.add_argument("--threads", type=int, default=0, help="0 is all cores")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--again", action="store_true", help="also what was measured already")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
