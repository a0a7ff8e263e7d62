"""`make bench-learning-prompts`: what is learnt from prompts without anybody's answers, or with few.

Four studies, each a method beside its controls, from one start on the same prompts: TTRL, SePT,
SPECS, SD-Zero. Asked are prompts of the same kind that no run has seen, and prompts of another kind.

Two models: the tiny test model, which reads short texts rightly more often than it says so, and as
apprentices that half keep a form or can revise (`benchmarks.apprentice`), for all seeds and many
steps; and SmolLM2-135M-Instruct as it comes, for as far as time allows.
Cells (a study, an arm, a seed) are kept as they come, and a run goes on where it stopped.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from adapters.base_model import WHEEL
from adapters.evaluation.exam import sit_exam
from adapters.evaluation.general import load_general_suite
from adapters.lesson import Weights
from adapters.methods import Assignment, build_method
from adapters.rewards.contracts import fault_of
from adapters.rewards.equivalence import are_equal, cluster
from adapters.rewards.extraction import extract
from adapters.sampling import RolloutSampler
from adapters.spec import METHOD_CONFIG, MethodConfig
from adapters.types import JSON, Prompt, SamplingParams
from benchmarks.apprentice import folder_of, make_apprentice
from benchmarks.cells import Cell, Cells
from benchmarks.decoders import Decoder, open_decoder
from benchmarks.draw import IMAGES
from benchmarks.learning_bench import LocalBench
from benchmarks.prompt_report import report
from benchmarks.prompt_studies import RANK, START, STUDIES, Study
from benchmarks.prompt_tasks import Tasks
from benchmarks.real_engine import TINY_MODEL
from benchmarks.results import CELLS, FOLDER, ROOT, Results
from server.embedded.up import prepare_model

SAMPLES = 8
"""Replies to each prompt at temperature 1; a prompt's share of right ones is one figure."""
VOTES = 16
COLDER = 0.5
"""Part of the temperature at which the untouched model is asked that methods which only sharpen are held against."""
REPLY_TOKENS = 48

STATE = ROOT / "benchmarks" / ".prompts"
_PROTOCOL = 1
"""Raise it when prompts are asked or graded in another way: cells of the old way no longer count."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What every cell needs."""

    decoder: Decoder
    model: Path
    apprentices: Mapping[str, tuple[Weights, RolloutSampler]]
    """By kind: where the studies start that want one, and who speaks as it."""
    cells: Cells
    state: Path
    threads: int
    say: Callable[[str], None]

    def start_of(self, study: Study) -> Weights | None:
        """Where its arms begin; None: the base."""
        return self.apprentices[study.apprentice][0] if study.apprentice else None

    def bench(self, study: Study, name: str) -> LocalBench:
        """A workbench whose memory is this cell's."""
        folder = self.state / "work" / name
        speaker = self.apprentices[study.apprentice][1] if study.apprentice else self.decoder.base
        return LocalBench(
            self.decoder, self.model, folder, self.threads, self.say, champion=speaker
        )


def main(arguments: list[str] | None = None) -> int:
    """Measure what has not been measured with these settings; exit status 0."""
    options = _parse(arguments)
    studies = [study for study in STUDIES[options.model] if study.name in options.studies]
    setup = f"{options.model}, {options.decoder}, {options.seeds} seeds"
    results = Results(
        "learning-prompts", setup=setup, seed=0, again=options.again, folder=options.results
    )
    state = options.state / options.model
    model = TINY_MODEL if options.model == "tiny" else prepare_model(WHEEL, state).path
    with open_decoder(
        options.decoder, model, state / "home", rank=RANK, threads=options.threads
    ) as decoder:
        kinds = dict.fromkeys(study.apprentice for study in studies if study.apprentice)
        taught = {kind: _apprentice(kind, decoder, model, state, options.threads) for kind in kinds}
        published = options.results / CELLS / f"learning-prompts-{options.model}.jsonl"
        cells = Cells(state / "cells.jsonl", published)
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        with decoder.serving(list(taught.values())) as speakers:
            pairs = zip(taught.values(), speakers, strict=True)
            apprentices = dict(zip(taught, pairs, strict=True))
            ground = Ground(decoder, model, apprentices, cells, state, options.threads, _say)
            for seed in seeds:
                for study in studies:
                    for arm in (START, *study.arms):
                        if arm in options.arms or not options.arms:
                            _measure(ground, study, arm, seed)
        report(results, cells, digest_of, studies, seeds, options.images, options.model)
    return 0


def digest_of(study: Study, arm: str, seed: int) -> str:
    """What decides a cell, in short."""
    config = config_of(study, arm, seed)
    fields = config.model_dump_json(exclude_defaults=True) if config else ""
    text = f"{_PROTOCOL}\0{study.owner(arm)}\0{arm}\0{fields}\0{SAMPLES}"
    if study.apprentice:
        text += f"\0{study.apprentice}"
    return sha256(text.encode()).hexdigest()[:12]


def config_of(study: Study, arm: str, seed: int) -> MethodConfig | None:
    """The method's config of an arm; None for the start."""
    if arm == START:
        return None
    return METHOD_CONFIG.validate_python({**study.arms[arm], "seed": seed})


def measure(tasks: Tasks, sampler: RolloutSampler, *, is_start: bool) -> dict[str, JSON]:
    """Shares of right replies, prompt by prompt, and what else the study asks for."""
    held_out = _draws(tasks.held_out, sampler, SAMPLES, tasks.temperature)
    found: dict[str, JSON] = {
        "sampled": _shares(tasks, tasks.held_out, held_out),
        "greedy": _shares(tasks, tasks.held_out, _draws(tasks.held_out, sampler, 1, 0.0)),
        "other kind": _shares(
            tasks, tasks.other, _draws(tasks.other, sampler, SAMPLES, tasks.temperature)
        ),
        "distinct": [len(set(replies)) / len(replies) for replies in held_out],
    }
    if tasks.contract is not None:
        kept = [
            [fault_of(reply, tasks.contract) is None for reply in replies] for replies in held_out
        ]
        found["form"] = [sum(row) / len(row) for row in kept]
    if is_start:
        colder = _draws(tasks.held_out, sampler, SAMPLES, COLDER * tasks.temperature)
        found["colder"] = _shares(tasks, tasks.held_out, colder)
        votes = _draws(tasks.held_out, sampler, VOTES, tasks.temperature, seed=1000)
        found["majority"] = [
            float(_majority_is_right(tasks, prompt, replies))
            for prompt, replies in zip(tasks.held_out, votes, strict=True)
        ]
    return found


def _measure(ground: Ground, study: Study, arm: str, seed: int) -> None:
    digest = digest_of(study, arm, seed)
    if ground.cells.find(digest, study.case(arm), 0, seed) is not None:
        return
    ground.say(f"{study.name}: {arm}, seed {seed}")
    began = time.monotonic()
    tasks = study.tasks(seed)
    config = config_of(study, arm, seed)
    bench = ground.bench(study, f"{digest}-seed-{seed}")
    start = ground.start_of(study)
    lesson: dict[str, JSON] = {}
    weights = start
    if config is not None:
        outcome = build_method(config).learn(_assignment(tasks, start), bench)
        lesson, weights = outcome.report, outcome.weights or start
    with _sampler(ground.decoder, weights) as sampler:
        values = measure(tasks, sampler, is_start=arm == START)
        general = [answer.is_correct for answer in sit_exam(load_general_suite(), sampler)]
    bench.tidy()
    cell = Cell(
        study.case(arm),
        0,
        seed,
        general=general,
        seconds=round(time.monotonic() - began, 1),
        report={"values": values, "lesson": lesson, "tokens": bench.tokens},
    )
    ground.cells.add(digest, cell)


def _assignment(tasks: Tasks, champion: Weights | None) -> Assignment:
    """Answers go along; a method that learns without them does not look."""
    return Assignment(
        prompts=tasks.train,
        held_out=frozenset(prompt.id for prompt in (*tasks.held_out, *tasks.other)),
        champion=champion,
    )


@contextmanager
def _sampler(decoder: Decoder, weights: Weights | None) -> Iterator[RolloutSampler]:
    if weights is None:
        yield decoder.base
        return
    with decoder.serving([weights]) as (sampler,):
        yield sampler


def _draws(
    prompts: Sequence[Prompt],
    sampler: RolloutSampler,
    count: int,
    temperature: float,
    seed: int = 0,
) -> list[list[str]]:
    """`count` replies to each prompt."""
    conversations = [list(prompt.messages) for prompt in prompts]
    params = SamplingParams(REPLY_TOKENS, temperature, seed=seed)
    groups = sampler.rollouts(conversations, params, group=count)
    return [[rollout.text for rollout in group] for group in groups]


def _shares(
    tasks: Tasks, prompts: Sequence[Prompt], replies: Sequence[Sequence[str]]
) -> list[JSON]:
    return [
        sum(is_right(tasks, prompt, reply) for reply in said) / len(said)
        for prompt, said in zip(prompts, replies, strict=True)
    ]


def is_right(tasks: Tasks, prompt: Prompt, reply: str) -> bool:
    """Whether a reply's answer is one of the prompt's, in whatever form it is said."""
    answer = extract(reply, tasks.answer)
    return answer is not None and any(
        are_equal(answer, known, tasks.answer) for known in prompt.answers
    )


def _majority_is_right(tasks: Tasks, prompt: Prompt, replies: Sequence[str]) -> bool:
    answers = [extract(reply, tasks.answer) for reply in replies]
    groups = Counter(group for group in cluster(answers, tasks.answer) if group is not None)
    if not groups:
        return False
    first = cluster(answers, tasks.answer).index(groups.most_common(1)[0][0])
    return is_right(tasks, prompt, replies[first])


def _apprentice(kind: str, decoder: Decoder, model: Path, state: Path, threads: int) -> Weights:
    """Taught once, and kept."""
    folder = folder_of(state, kind)
    if not folder.exists():
        _say(f"apprentice: {kind}")
        bench = LocalBench(decoder, model, state / "work" / folder.name, threads, _say)
        general = [item.prompt for item in load_general_suite()]
        made = make_apprentice(kind, bench, decoder.base, general)
        made.folder.rename(folder)
        bench.tidy()
    return Weights(folder)


def _say(words: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {words}\n")
    sys.stderr.flush()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    names = list(dict.fromkeys(study.name for found in STUDIES.values() for study in found))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompts", description=__doc__)
    parser.add_argument("--model", choices=list(STUDIES), default="tiny")
    parser.add_argument("--studies", type=words, default=names, help="with commas")
    parser.add_argument("--arms", type=words, default=[], help="with commas; all if not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--decoder", default="vLLM", choices=["vLLM", "transformers"])
    parser.add_argument("--state", type=Path, default=STATE, help="folder of cells and lessons")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the figures")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the curves")
    parser.add_argument(
        "--threads", type=int, default=2, help="of the trainer, and of transformers"
    )
    parser.add_argument("--again", action="store_true", help="write the figures anew")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
