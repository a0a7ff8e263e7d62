"""`make bench-learning-documents`: what a small model knows of a text when it no longer sees it.

Passages of SQuAD with the questions that people asked about them. Each arm learns each passage alone
and is asked its questions without it; then eight passages are learnt one after another, by Everlearn's
protocol (from the clean base on all of them) and by SEAL's (merging edit upon edit).

Cells (an arm, a passage, a seed) are kept as they come, replies and all, and a run goes on where it
stopped; a cell is measured anew when what decides it has changed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError

from adapters.base_model import WHEEL
from adapters.evaluation.exam import Answer, sit_exam
from adapters.evaluation.general import load_general_suite
from adapters.evaluation.quiz import build_exam_items
from adapters.lesson import Stage
from adapters.methods import Assignment, build_method
from adapters.methods.seal import LessonPlan
from adapters.rewards.answers import is_correct
from adapters.sampling import Sampler
from adapters.spec import (
    METHOD_CONFIG,
    HealConfig,
    MethodConfig,
    ReplaySpec,
    SealConfig,
    SelfEditSpec,
    TrainingSpec,
)
from adapters.types import JSON, EditKind, ExamItem, SamplingParams, SelfEdit
from benchmarks import sequences
from benchmarks.cells import Cell, Cells, accuracy
from benchmarks.decoders import Decoder, open_decoder
from benchmarks.draw import IMAGES
from benchmarks.learning_bench import LocalBench
from benchmarks.learning_report import GridValues, edits_kept, report, report_sequences
from benchmarks.passages import DATA_VARIABLE, Passage, data_file, read_passages
from benchmarks.remembered import RememberingDecoder
from benchmarks.results import CELLS, FOLDER, ROOT, Results
from benchmarks.sequences import Course
from benchmarks.weakened import LastTrained, part_of
from server.embedded.up import prepare_model

BASE, CONTEXT, PASSAGE, DIRECT, WEAKENED, HEALED, OUTER, QUIZ, DISTILL = (
    "base",
    "context",
    "passage",
    "direct",
    "weakened",
    "healed",
    "outer",
    "quiz",
    "distill",
)
ARMS = (BASE, CONTEXT, PASSAGE, DIRECT, WEAKENED, HEALED, OUTER, QUIZ, DISTILL)
ASKED_ONLY = (BASE, CONTEXT)
"""Arms without training: their answers are greedy, so one seed says all."""

SETTING = SealConfig(
    training=TrainingSpec(epochs=6),
    self_edits=SelfEditSpec(span_questions=False, rewordings=0, keyword_questions=4),
    replay=ReplaySpec(prompts=64, prompts_per_epoch=32, least_share=0.0),
    strength=1.0,
)
"""What the arms train with, unless `--setting` gives another; chosen on passages 16 to 19."""

STRENGTH = 0.7
"""Of what the arm `weakened` keeps; chosen on passages 16 to 19, as the setting was."""

WRITTEN = {"needs_agreement": False, "edit_temperature": 0.3, "edit_tokens": 256}
"""How the outer loop's candidates are written and held to the text. SmolLM2-135M denies the text's own
sentences when it is asked whether they are true, so the rules alone decide; and at the paper's
temperature of 1 it writes next to nothing that they let pass."""

REPLY_TOKENS = 64
"""As in the paper."""

STATE = ROOT / "benchmarks" / ".learning"
_PROTOCOL = 1
"""Raise it when questions are asked or graded in another way: cells of the old way no longer count."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What every cell needs."""

    decoder: Decoder
    setting: SealConfig
    model: Path
    cells: Cells
    state: Path
    threads: int
    say: Callable[[str], None]

    def digest(self, arm: str, seed: int) -> str:
        """What decides a cell, in short: settings, decoder, and how questions are asked."""
        config = config_of(self.setting, arm, seed)
        fields = config.model_dump_json(exclude_defaults=True) if config else ""
        if arm == HEALED:
            fields += _direct(self.setting, seed).model_dump_json(exclude_defaults=True)
        text = f"{_PROTOCOL}\0{self.decoder.name}\0{arm}\0{fields}"
        return sha256(text.encode()).hexdigest()[:12]

    @property
    def last_trained(self) -> LastTrained:
        """The newest adapter of direct SEAL, of which another arm keeps a part."""
        return LastTrained(self.state / "work" / "last-trained")

    def bench(self, digest: str, name: str) -> LocalBench:
        """A workbench whose memory is this cell's."""
        folder = self.state / "work" / digest / name
        return LocalBench(self.decoder, self.model, folder, self.threads, self.say)


def main(arguments: list[str] | None = None) -> int:
    """Measure what has not been measured with these settings; exit status 0, 2 without data."""
    options = _parse(arguments)
    path = data_file()
    if not path.is_file():
        sys.stderr.write(
            f"skipped: {path} is missing; {DATA_VARIABLE} names the folder that holds it\n"
        )
        return 2
    setting = _setting(options.setting)
    arms = [arm for arm in options.arms if _can_be_learnt(arm, setting)]
    passages = read_passages(path, range(options.first, options.first + options.passages))
    results = Results(
        "learning-documents",
        setup=_setup(options, setting),
        seed=0,
        again=options.again,
        folder=options.results,
    )
    published = options.results / CELLS / "learning-documents.jsonl"
    cells = Cells(options.state / "cells.jsonl", published)
    model = options.model or prepare_model(WHEEL, options.state).path
    home, rank = options.state / "home", setting.lora.rank
    with open_decoder(options.decoder, model, home, rank=rank, threads=options.threads) as decoder:
        asked_once = options.state / f"base-{decoder.name}-{model.name}.jsonl"
        decoder = RememberingDecoder(decoder, asked_once)
        ground = Ground(decoder, setting, model, cells, options.state, options.threads, _say)
        for arm, passage, seed in _plan(arms, passages, options.seeds):
            _measure(ground, results, arm, passage, seed, again=options.again)
        report(results, cells, ground.digest, passages, arms=arms, seeds=options.seeds)
        _learn_sequences(ground, results, passages, options)
    return 0


def _learn_sequences(
    ground: Ground, results: Results, passages: Sequence[Passage], options: argparse.Namespace
) -> None:
    courses = {name: _courses(ground, name, passages, options) for name in options.protocols}
    for of_a_seed in zip(*courses.values(), strict=True):
        for name, course in zip(courses, of_a_seed, strict=True):
            bench = ground.bench(course.digest, f"sequence-seed-{course.seed}")
            sequences.run(name, course, bench, ground.cells, _lessons(ground, course.seed))
    whole = {name: _whole(name, courses[name], ground.cells) for name in courses}
    grids = {name: [grid for grid, _ in found] for name, found in whole.items()}
    suites = {name: [ends for _, ends in found] for name, found in whole.items()}
    report_sequences(results, grids, suites, options.images)


def _courses(
    ground: Ground, name: str, passages: Sequence[Passage], options: argparse.Namespace
) -> list[Course]:
    """A protocol's sequence for each seed; none where there are too few passages for one."""
    if not 0 < options.sequence <= len(passages):
        return []
    courses = []
    for seed in range(options.sequence_seeds or options.seeds):
        drawn = sequences.order_of(passages, options.sequence, seed)
        config = sequences.config_of(ground.setting, name, seed)
        digest = sequences.digest_of(config, drawn, f"{_PROTOCOL}, {ground.decoder.name}")
        courses.append(Course(drawn, seed, config, REPLY_TOKENS, digest))
    return courses


def _lessons(ground: Ground, seed: int) -> sequences.Lessons:
    digest = ground.digest(DIRECT, seed)
    config = ground.setting.model_copy(update={"seed": seed})

    def lesson(passage: Passage) -> LessonPlan:
        bench = ground.bench(digest, f"{passage.id}-seed-{seed}")
        return sequences.write_lesson(passage, config, bench)

    return lesson


def _whole(
    name: str, courses: Sequence[Course], cells: Cells
) -> list[tuple[GridValues, Sequence[Cell]]]:
    """The grid of each sequence that is whole, with its first and last cell."""
    found: list[tuple[GridValues, Sequence[Cell]]] = []
    for course in courses:
        steps = sequences.steps_of(name, course, cells)
        if steps is not None:
            found.append((sequences.grid_of(course, steps), (steps[0], steps[-1])))
    return found


def config_of(setting: SealConfig, arm: str, seed: int) -> MethodConfig | None:
    """The method's config of an arm; None for those without training, or of another kind.

    Raises:
        ValidationError: this version of Everlearn has no such method.
    """
    fields = setting.model_dump() | {"seed": seed}
    if arm in ASKED_ONLY:
        return None
    if arm == HEALED:
        return HealConfig(seed=seed)
    if arm == WEAKENED:
        return METHOD_CONFIG.validate_python(fields | {"strength": STRENGTH})
    if arm == OUTER:
        written = fields["self_edits"] | WRITTEN
        return METHOD_CONFIG.validate_python(
            fields | {"outer": {"is_enabled": True}, "self_edits": written}
        )
    if arm == DISTILL:
        del fields["self_edits"], fields["outer"], fields["strength"]
        return METHOD_CONFIG.validate_python(fields | {"type": "distill"})
    return METHOD_CONFIG.validate_python(fields)


def _direct(setting: SealConfig, seed: int) -> MethodConfig:
    config = config_of(setting, DIRECT, seed)
    assert config is not None
    return config


def _can_be_learnt(arm: str, setting: SealConfig) -> bool:
    """Whether this version of Everlearn has the arm's method; says so where it has not."""
    try:
        config_of(setting, arm, 0)
    except ValidationError:
        _say(f"{arm}: left out, this version has no such method")
        return False
    return True


def _plan(
    arms: Sequence[str], passages: Sequence[Passage], seeds: int
) -> Iterator[tuple[str, Passage, int]]:
    """Arms without training first, then seed by seed and passage by passage: arms are compared on
    the passages that all of them have, and `weakened` takes what `direct` has just trained."""
    for arm in (arm for arm in arms if arm in ASKED_ONLY):
        for passage in passages:
            yield arm, passage, 0
    trained = [arm for arm in arms if arm not in ASKED_ONLY]
    yield from ((arm, passage, s) for s in range(seeds) for passage in passages for arm in trained)


def _measure(
    ground: Ground, results: Results, arm: str, passage: Passage, seed: int, *, again: bool
) -> None:
    digest = ground.digest(arm, seed)
    name = f"{arm}, {passage.id}, seed {seed}"
    cell = ground.cells.find(digest, arm, passage.number, seed)
    if cell is None or again:
        ground.say(name)
        cell = _MAKERS[arm](ground, digest, passage, seed)
        ground.cells.add(digest, cell)
    if not results.has(name):
        results.add(name, "accuracy", accuracy(cell.own()), "")
        results.finish(name)


def _base(ground: Ground, digest: str, passage: Passage, seed: int) -> Cell:
    """The general suite is asked once: it is the same base for every passage."""
    bench = ground.bench(digest, "base")

    def ask() -> JSON:
        return [*_marks(sit_exam(load_general_suite(), bench.base))]

    general = bench.once("general", ask)
    assert isinstance(general, list)
    return _asked(BASE, passage, seed, bench.base, bench, general=list(map(bool, general)))


def _context(ground: Ground, _: str, passage: Passage, seed: int) -> Cell:
    began = time.monotonic()
    replies = ground.decoder.base.chat(passage.open_book(), SamplingParams(max_tokens=REPLY_TOKENS))
    right = [is_correct(r, [a]) for r, (_, a) in zip(replies, passage.questions, strict=True)]
    number = str(passage.number)
    return Cell(
        CONTEXT,
        passage.number,
        seed,
        correct={number: right},
        replies={number: replies},
        seconds=round(time.monotonic() - began, 1),
    )


def _passage(ground: Ground, digest: str, passage: Passage, seed: int) -> Cell:
    """Every token of title and text, as in the paper's ablation; nothing written, no replay."""
    chunks = passage.document().chunks
    edits = tuple(
        SelfEdit(EditKind.PASSAGE, passage.id, None, f"{passage.title}\n{chunk.strip()}", "rule")
        for chunk in chunks
    )
    setting = ground.setting
    stage = Stage(lora=setting.lora, training=setting.training, seed=seed, edits=edits)
    with _workplace(ground, digest, passage, seed) as bench:
        with bench.stage("training"):
            weights = bench.train(stage)
        with bench.serving([weights]) as (sampler,):
            return _asked(PASSAGE, passage, seed, sampler, bench)


def _learnt(arm: str) -> Callable[[Ground, str, Passage, int], Cell]:
    def make(ground: Ground, digest: str, passage: Passage, seed: int) -> Cell:
        config = config_of(ground.setting, arm, seed)
        assert config is not None
        assignment = _assignment(passage, arm, ground.setting)
        with _workplace(ground, digest, passage, seed) as bench:
            outcome = build_method(config).learn(assignment, bench)
            if outcome.weights is None:
                return _asked(arm, passage, seed, bench.base, bench, lesson=outcome.report)
            if arm == DIRECT:
                ground.last_trained.keep(f"{digest}-{passage.id}", outcome.weights.folder)
            with bench.serving([outcome.weights]) as (sampler,):
                return _asked(arm, passage, seed, sampler, bench, lesson=outcome.report)

    return make


def _weakened(ground: Ground, digest: str, passage: Passage, seed: int) -> Cell:
    """A part of what direct SEAL has just trained on the passage, or else trained anew."""
    adapter = ground.last_trained.find(f"{ground.digest(DIRECT, seed)}-{passage.id}")
    if adapter is None:
        return _learnt(WEAKENED)(ground, digest, passage, seed)
    with _workplace(ground, digest, passage, seed) as bench:
        weights = part_of(adapter, STRENGTH, bench.folder / "weights-weakened")
        with bench.serving([weights]) as (sampler,):
            return _asked(WEAKENED, passage, seed, sampler, bench)


def _quiz(ground: Ground, digest: str, passage: Passage, seed: int) -> Cell:
    """Where the outer loop kept no edit, its arm was this very training, and is not trained again:
    two searches of nothing do not differ, and a training is the same from the same seed."""
    outer = ground.cells.find(ground.digest(OUTER, seed), OUTER, passage.number, seed)
    if outer is not None and edits_kept(outer) == 0:
        return replace(outer, arm=QUIZ, report={})  # its report is of a search
    return _learnt(QUIZ)(ground, digest, passage, seed)


def _healed(ground: Ground, digest: str, passage: Passage, seed: int) -> Cell:
    """Direct SEAL, then the healing run that the server starts by itself when what it has promoted
    lost some of the general suite. It rehearses what was learnt by the rules' questions."""
    heal = config_of(ground.setting, HEALED, seed)
    assert heal is not None
    assignment = _assignment(passage, HEALED, ground.setting)
    with _workplace(ground, digest, passage, seed) as bench:
        direct = build_method(_direct(ground.setting, seed))
        champion = direct.learn(_assignment(passage, DIRECT, ground.setting), bench).weights
        assert champion is not None
        with bench.serving([champion]) as (speaker,):
            bench.champion = speaker
            outcome = build_method(heal).learn(replace(assignment, champion=champion), bench)
        assert outcome.weights is not None
        with bench.serving([outcome.weights]) as (sampler,):
            return _asked(HEALED, passage, seed, sampler, bench, lesson=outcome.report)


_MAKERS: Mapping[str, Callable[[Ground, str, Passage, int], Cell]] = {
    BASE: _base,
    CONTEXT: _context,
    PASSAGE: _passage,
    DIRECT: _learnt(DIRECT),
    WEAKENED: _weakened,
    HEALED: _healed,
    OUTER: _learnt(OUTER),
    QUIZ: _quiz,
    DISTILL: _learnt(DISTILL),
}


def _assignment(passage: Passage, arm: str, setting: SealConfig) -> Assignment:
    """People's questions are held out. The outer loop's reward needs others: cut sentences, which
    the rules make. It teaches them, too; so does the arm `quiz`, which does nothing else that
    `direct` does not, and is what the outer loop is to be held against. Healing rehearses by them.
    """
    document = passage.document()
    quiz: list[ExamItem] = []
    if arm in (HEALED, QUIZ, OUTER):
        held, rest = build_exam_items(document, sampler=None, exam=setting.exam, quiz=setting.quiz)
        quiz = [*held, *rest]  # the exam here is people's questions; of these none is in it
    return Assignment(
        documents=(document,),
        new_documents=frozenset({document.id}),
        held_out=frozenset(item.prompt for item in passage.items()),
        quiz=tuple(quiz),
    )


@contextmanager
def _workplace(ground: Ground, digest: str, passage: Passage, seed: int) -> Iterator[LocalBench]:
    bench = ground.bench(digest, f"{passage.id}-seed-{seed}")
    try:
        yield bench
    finally:
        bench.tidy()


def _asked(
    arm: str,
    passage: Passage,
    seed: int,
    sampler: Sampler,
    bench: LocalBench,
    *,
    lesson: dict[str, JSON] | None = None,
    general: list[bool] | None = None,
) -> Cell:
    began = time.monotonic()
    answers = sit_exam(passage.items(), sampler, max_new_tokens=REPLY_TOKENS)
    if general is None:
        general = _marks(sit_exam(load_general_suite(), sampler))
    number = str(passage.number)
    return Cell(
        arm,
        passage.number,
        seed,
        correct={number: _marks(answers)},
        general=general,
        replies={number: [answer.reply for answer in answers]},
        seconds=round(time.monotonic() - began + sum(bench.seconds.values()), 1),
        report={"seconds": {**bench.seconds}, "tokens": bench.tokens, "lesson": lesson or {}},
    )


def _marks(answers: Sequence[Answer]) -> list[bool]:
    return [answer.is_correct for answer in answers]


def _setup(options: argparse.Namespace, setting: SealConfig) -> str:
    config = sha256(setting.model_dump_json().encode()).hexdigest()[:8]
    return (
        f"{options.passages} passages from {options.first}, {options.seeds} seeds, "
        f"{options.decoder}, setting {config}"
    )


def _setting(path: Path | None) -> SealConfig:
    return SETTING if path is None else SealConfig.model_validate_json(path.read_bytes())


def _say(words: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {words}\n")
    sys.stderr.flush()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--first", type=int, default=0, help="number of the first passage")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--arms", type=lambda words: words.split(","), default=list(ARMS), help="with commas"
    )
    parser.add_argument("--sequence", type=int, default=8, help="passages in a row; 0 is none")
    parser.add_argument("--sequence-seeds", type=int, default=0, help="0 is as many as --seeds")
    parser.add_argument(
        "--protocols",
        type=lambda words: words.split(","),
        default=list(sequences.PROTOCOLS),
        help="of sequences, with commas",
    )
    parser.add_argument("--decoder", default="vLLM", choices=["vLLM", "transformers"])
    parser.add_argument("--setting", type=Path, help="JSON file of a SealConfig, to try another")
    parser.add_argument("--model", type=Path, help="model folder; SmolLM2-135M if not given")
    parser.add_argument("--state", type=Path, default=STATE, help="folder of cells and lessons")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the figures")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the heat map")
    parser.add_argument(
        "--threads", type=int, default=2, help="of the trainer, and of transformers"
    )
    parser.add_argument("--again", action="store_true", help="also what was measured already")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
