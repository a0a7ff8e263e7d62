"""`make bench-gate`: does the gate promote what learnt its documents, and nothing that was harmed?

Fifty good candidates and fifty sabotaged ones (`benchmarks.gate_candidates`) of the tiny test model
are trained by the product's trainer, loaded into real vLLM, asked what a run's exam asks, measured
for drift and judged by the gate with its default settings, each beside its world's champion, which
has learnt two earlier documents.

Every candidate's adapter and answers are kept in a work folder: a run that was broken off goes on,
and answers that are there are judged anew by the gate of this commit. The figures are written once
all are judged.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any, TypeVar

from pydantic import TypeAdapter

from adapters.evaluation.drift import Drift, Recorder, measure_drift
from adapters.evaluation.exam import Answer, sit_exam
from adapters.evaluation.gate import Decision, Verdict, decide
from adapters.evaluation.general import load_general_suite
from adapters.evaluation.intervals import wilson_interval
from adapters.lesson import Stage, stages_to_json
from adapters.sampling import Sampler
from adapters.spec import GateThresholds
from adapters.types import ExamItem
from benchmarks import rig
from benchmarks.gate_candidates import (
    COUNTS,
    WORLDS,
    Candidate,
    Kind,
    candidates,
    champion_stage,
    config,
    earlier,
    items,
    new,
    stage,
)
from benchmarks.real_engine import NO_BINDING, START_TIMEOUT_S, TINY_MODEL
from benchmarks.remembered import RememberedSampler
from benchmarks.results import ROOT, Aim, Results
from server.core.settings import EngineSettings, ModelSettings, Settings
from server.embedded.preflight import free_port
from server.embedded.up import prepare_model
from server.engine.control import open_control
from server.engine.launch import engine_command
from workers.sampler import EngineSampler

MODEL = "tiny"
BASE = f"{MODEL}@base"
GOOD_AIM = Aim(0.8, of_ratio=False)
SABOTAGED_AIM = Aim(0.0, is_at_least=False, of_ratio=False)

_T = TypeVar("_T")

_ANSWERS = TypeAdapter(dict[str, list[Answer]])
_DRIFT = TypeAdapter(Drift)


def main(arguments: list[str] | None = None) -> int:
    """Train, ask and judge what has not been; exit status 0."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the engine is stopped, too
    counts = {kind: min(count, options.most or count) for kind, count in COUNTS.items()}
    wanted = candidates(counts)
    results = Results("gate", setup=_setup(options, counts), seed=0, again=options.again)
    with ExitStack() as stack:
        work = Work(options.work, options)
        if any(not work.is_asked(candidate) for candidate in wanted):
            engine = stack.enter_context(_engine(options.work))
            base = RememberedSampler(engine.sampler(BASE), options.work / "base.jsonl")
            work.train([(_champion(world), world) for world in range(WORLDS)], base)
            for group in _groups(wanted, options.together):
                work.train([(candidate.name, candidate) for candidate in group], base)
                work.ask(group, engine)
    verdicts = {candidate: judge(work, candidate) for candidate in wanted}
    _write_down(results, counts, verdicts, options.work)
    return 0


class Engine:
    """Real vLLM over the tiny model, as an exam sees it."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings = settings
        self._url = url

    def sampler(self, name: str) -> EngineSampler:
        """Speaks with the weights of an engine name."""
        return EngineSampler(self._settings, name, [self._url])

    @contextmanager
    def serving(self, name: str, folder: Path) -> Iterator[EngineSampler]:
        """The engine holds the adapter while it lasts."""

        async def load() -> None:
            async with open_control(self._settings.engine, self._url) as control:
                await control.load_adapter(name, str(folder))

        async def unload() -> None:
            async with open_control(self._settings.engine, self._url) as control:
                await control.unload_adapter(name)

        asyncio.run(load())
        try:
            yield self.sampler(name)
        finally:
            asyncio.run(unload())


class Work:
    """The folder in which candidates are kept, one file or folder each."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        self._threads = options.threads
        self._together = options.together
        self._folder.mkdir(parents=True, exist_ok=True)

    def adapter(self, name: str) -> Path:
        return self._folder / "adapters" / name

    def is_asked(self, candidate: Candidate) -> bool:
        return self._answers_file(candidate).exists()

    def answers(self, candidate: Candidate) -> tuple[dict[str, list[Answer]], Drift]:
        """Both sides' answers and the drift."""
        fields = json.loads(self._answers_file(candidate).read_text())
        return _ANSWERS.validate_python(fields["answers"]), _DRIFT.validate_python(fields["drift"])

    def train(self, wanted: Sequence[tuple[str, Candidate | int]], base: Sampler) -> None:
        """Every candidate, and every champion by the number of its world, that is not there yet.

        `base` is the base model, which answers what the lessons replay.
        """
        missing = [(name, what) for name, what in wanted if not self.adapter(name).exists()]
        for group in _groups(missing, self._together):
            stages = [
                champion_stage(what, base) if isinstance(what, int) else stage(what, base)
                for _, what in group
            ]
            self._train([name for name, _ in group], stages)

    def ask(self, wanted: Sequence[Candidate], engine: Engine) -> None:
        """The exam of every candidate that has not sat it, beside its champion."""
        for candidate in wanted:
            if self.is_asked(candidate):
                continue
            asked = exam_items(candidate)
            champion = _champion(candidate.world)
            with (
                engine.serving(champion, self.adapter(champion)) as theirs,
                engine.serving(candidate.name, self.adapter(candidate.name)) as ours,
            ):
                sides = Recorder(theirs), Recorder(ours)
                most = config(0).exam.max_new_tokens
                answers = [sit_exam(asked, side, max_new_tokens=most) for side in sides]
                drift = measure_drift(
                    asked,
                    sides[0].replies_to(asked),
                    sides[1].replies_to(asked),
                    base=engine.sampler(BASE),
                    model=ours,
                    most=GateThresholds().drift_prompts,
                    places=GateThresholds().drift_places,
                    max_new_tokens=most,
                )
            fields = {
                "answers": _ANSWERS.dump_python(
                    {"champion": answers[0], "challenger": answers[1]}, mode="json"
                ),
                "drift": _DRIFT.dump_python(drift, mode="json"),
            }
            _write(self._answers_file(candidate), fields)
            _say(f"{candidate.name}: asked")

    def _train(self, names: Sequence[str], stages: Sequence[Stage]) -> None:
        place = self._folder / "training"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        outputs = [place / name for name in names]
        job = {
            "base_model": str(TINY_MODEL),
            "stages": stages_to_json(list(stages)),
            "outputs": [str(output) for output in outputs],
            "threads": self._threads,
        }
        (place / "job.json").write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, "-m", "adapters.training.job", str(place / "job.json")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"a training failed: {done.stdout[-500:]}")
        for name, output in zip(names, outputs, strict=True):
            if not output.exists():
                raise RuntimeError(f"{name} diverged: it never comes to an exam")
            self.adapter(name).parent.mkdir(exist_ok=True)
            output.rename(self.adapter(name))
            _say(f"{name}: trained")

    def _answers_file(self, candidate: Candidate) -> Path:
        return self._folder / "answers" / f"{candidate.name}.json"


def exam_items(candidate: Candidate) -> list[ExamItem]:
    """What a run's exam asks: the new document, every earlier one, and the general suite."""
    told = (new(candidate), *earlier(candidate.world))
    return [*(item for each in told for item in items(each)), *load_general_suite()]


def judge(work: Work, candidate: Candidate) -> Decision:
    """The gate's decision on the answers that are kept."""
    answers, drift = work.answers(candidate)
    return decide(
        exam_items(candidate),
        answers["champion"],
        answers["challenger"],
        new_documents=[new(candidate).document.id],
        earlier_documents=[told.document.id for told in earlier(candidate.world)],
        drift=drift,
    )


def _write_down(
    results: Results,
    counts: dict[Kind, int],
    verdicts: dict[Candidate, Decision],
    folder: Path,
) -> None:
    _write(
        folder / "verdicts.json",
        {candidate.name: decision.to_json() for candidate, decision in verdicts.items()},
    )
    kinds = {kind.value: [kind] for kind in counts}
    kinds["sabotaged"] = [kind for kind in counts if kind is not Kind.GOOD]
    for case, members in kinds.items():
        if results.has(case):
            continue
        found = [
            decision.verdict
            for candidate, decision in verdicts.items()
            if candidate.kind in members
        ]
        tally = Counter(found)
        aim = GOOD_AIM if case == Kind.GOOD else SABOTAGED_AIM
        low, high = wilson_interval(tally[Verdict.PROMOTE], len(found))
        results.add(case, "candidates", len(found), "")
        results.add(case, "promoted", tally[Verdict.PROMOTE] / len(found), "share", aim=aim)
        results.add(case, "promoted, lower end of 95 %", low, "share")
        results.add(case, "promoted, upper end of 95 %", high, "share")
        for verdict in (Verdict.REJECT, Verdict.INCONCLUSIVE):
            results.add(case, str(verdict), tally[verdict] / len(found), "share")
        results.finish(case)


@contextmanager
def _engine(folder: Path) -> Iterator[Engine]:
    with ExitStack() as stack:
        settings = Settings(_env_file=None, home=folder, model=ModelSettings(name=MODEL))
        model = prepare_model(str(TINY_MODEL), folder)
        port = free_port()
        command = engine_command(settings, model.path, port)
        cores = sorted(os.sched_getaffinity(0))
        process = stack.enter_context(
            rig.running(command.argv, {**command.env, **NO_BINDING}, cores)
        )
        url = f"http://127.0.0.1:{port}"
        rig.wait_for(f"{url}/health", process, START_TIMEOUT_S)
        yield Engine(settings.model_copy(update={"engine": EngineSettings(url=url)}), url)


def _setup(options: argparse.Namespace, counts: dict[Kind, int]) -> str:
    spec = config(0)
    return (
        f"{sum(counts.values())} candidates, {WORLDS} worlds of 2 earlier documents, "
        f"{spec.training.epochs} epochs at {spec.training.learning_rate:g}, "
        f"{options.together} trained at once"
    )


def _groups(members: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for first in range(0, len(members), size):
        yield members[first : first + size]


def _champion(world: int) -> str:
    return f"champion-{world:02}"


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    half.write_text(json.dumps(fields))
    half.rename(path)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate")
    parser.add_argument("--most", type=int, default=0, help="candidates of each kind; 0: all")
    parser.add_argument(
        "--work", type=Path, default=Path(gettempdir()) / "bench-gate", help="where work is kept"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the trainer")
    parser.add_argument("--together", type=int, default=10, help="adapters trained at once")
    parser.add_argument("--again", action="store_true", help="write the figures anew")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
