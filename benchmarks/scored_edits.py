"""Seconds for each scored self-edit: all of a passage's edits at once, and the serial way.

Serial is what SEAL's own loop does: train an adapter, load it, ask, unload, then the next. At once is
what the outer loop does: one training of all, one engine that holds all, all asked side by side.
Both start from the same edits and questions, train with the same settings and seeds, and are asked
by real vLLM; that they come to the same scores is measured too. The base, which the outer loop asks
besides, is asked in neither.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from adapters.evaluation.exam import sit_exam
from adapters.evaluation.quiz import build_exam_items
from adapters.lesson import Stage
from adapters.methods.free_edits import titled_passages
from adapters.sampling import Sampler
from adapters.spec import ExamSpec, LoraSpec, QuizSpec, TrainingSpec
from adapters.types import EditKind, ExamItem, SelfEdit, SourceDocument
from benchmarks.decoders import open_decoder
from benchmarks.learning_bench import LocalBench
from benchmarks.results import ROOT, Aim, Results

CASE = "scored self-edits"
AIM = Aim(5.0)
_TEXT = ROOT / "examples" / "demo" / "text.md"
_LORA = LoraSpec()
_EPOCHS = 6


@dataclass(frozen=True, slots=True)
class Round:
    """One way of scoring all the edits, measured once."""

    seconds: float
    """For each edit."""
    scores: list[float]
    """Share of the questions right, for each edit."""


def measure(
    results: Results, model: Path, folder: Path, *, edits: int, rounds: int, threads: int
) -> None:
    """Score so many edits both ways, in turn, and write the medians down."""
    document = _document()
    stages = candidates(document, edits)
    held, rest = build_exam_items(
        document, sampler=None, exam=ExamSpec(max_items=64), quiz=QuizSpec()
    )
    questions = [*held, *rest]
    found: dict[str, list[Round]] = {"serial": [], "at once": []}
    ways: dict[str, Callable[[LocalBench, Sequence[Stage], Sequence[ExamItem]], list[float]]] = {
        "serial": score_in_turn,
        "at once": score_at_once,
    }
    with open_decoder("vLLM", model, folder, rank=_LORA.rank) as decoder:
        for _ in range(rounds):
            for name, score in ways.items():
                place = folder / "scored"
                bench = LocalBench(decoder, model, place, threads)
                began = time.monotonic()
                with closing(bench):
                    scores = score(bench, stages, questions)
                found[name].append(Round((time.monotonic() - began) / edits, scores))
                shutil.rmtree(place, ignore_errors=True)
    serial, at_once = (median(each.seconds for each in found[name]) for name in ways)
    results.add(CASE, "serial", serial, "s/edit")
    results.add(CASE, "at once", at_once, "s/edit")
    # The aim is for time saved, so the ratio is of edits per second.
    results.add(CASE, "scored", 1 / at_once, "edits/s", baseline=1 / serial, aim=AIM)
    gap = max(
        abs(one - other)
        for one, other in zip(found["serial"][0].scores, found["at once"][0].scores, strict=True)
    )
    results.add(CASE, "largest gap of scores", gap, "")
    results.finish(CASE)


def score_in_turn(
    bench: LocalBench, stages: Sequence[Stage], questions: Sequence[ExamItem]
) -> list[float]:
    """Train one, load it, ask, unload; then the next."""
    scores = []
    for stage in stages:
        weights = bench.train(stage)
        with bench.serving([weights]) as (sampler,):
            scores.append(_score(sampler, questions))
    return scores


def score_at_once(
    bench: LocalBench, stages: Sequence[Stage], questions: Sequence[ExamItem]
) -> list[float]:
    """Train all, load all, ask all."""
    weights = [each for each in bench.try_out(stages) if each is not None]
    with bench.serving(weights) as samplers, ThreadPoolExecutor(len(samplers)) as pool:
        return list(pool.map(lambda sampler: _score(sampler, questions), samplers))


def candidates(document: SourceDocument, count: int) -> list[Stage]:
    """Edits as a writer of implications would give them: the passage, and half of its sentences."""
    sentences = [s.strip() for s in document.text.replace("\n", " ").split(". ") if s.strip()]
    half = max(1, len(sentences) // 2)
    spec = TrainingSpec(epochs=_EPOCHS)
    stages = []
    for number in range(count):
        taken = [sentences[(number + 2 * place) % len(sentences)] for place in range(half)]
        pieces = tuple(
            SelfEdit(EditKind.IMPLICATION, document.id, None, f"{document.title}\n{text}.", "rule")
            for text in dict.fromkeys(taken)
        )
        edits = (*titled_passages(document), *pieces)
        stages.append(Stage(_LORA, spec, seed=number, edits=edits))
    return stages


def _score(sampler: Sampler, questions: Sequence[ExamItem]) -> float:
    answers = sit_exam(questions, sampler)
    return sum(answer.is_correct for answer in answers) / len(answers)


def _document() -> SourceDocument:
    text = _TEXT.read_text().strip()
    return SourceDocument("demo", "The Tidewater Museum of Lost Instruments", text, (text,))
