"""Apprentices: the tiny test model, which follows no instruction, with something that it half can.

Taught by the product's trainer, so that methods which need a form kept now and then, or a model that
can revise itself, can be seen to work in long runs on little hardware.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from adapters.lesson import Stage, Weights
from adapters.methods.replay import PROMPTS
from adapters.methods.revising import turn
from adapters.sampling import Sampler
from adapters.spec import ControlPhrases, LoraSpec, TrainingSpec
from adapters.types import EditKind, GivenReply, SamplingParams, SelfEdit
from benchmarks.learning_bench import LocalBench
from tests.support.puzzles import Puzzle, make_puzzles

LORA = LoraSpec(rank=16, alpha=32)
TRAINING = TrainingSpec(learning_rate=1e-3, epochs=3, batch_size=32, microbatch_tokens=4096)
EXAMPLES = 600
"""Texts with a question, each another one."""
FORM_SHARE = 0.35
"""Of the examples of `form`, those that have the form which `prompt_tasks.stated` asks for."""
RIGHT_SHARE = 0.6
"""Of the replies that `revision` is shown, those that are right; all its revisions are."""
_ANCHORS = 200
_PUZZLES_SEED = 50_000


def make_apprentice(kind: str, bench: LocalBench, base: Sampler, general: Sequence[str]) -> Weights:
    """The same for every caller.

    Args:
        kind: of `KINDS`.
        general: prompts on which the base's replies are kept.
    """
    kept = list(dict.fromkeys((*PROMPTS, *general)))
    replies = base.chat(
        [[{"role": "user", "content": prompt}] for prompt in kept], SamplingParams(max_tokens=24)
    )
    anchors = tuple(
        SelfEdit(EditKind.REPLAY, None, prompt, reply, "model")
        for prompt, reply in zip(kept, replies, strict=True)
    )
    rng = Random(0)
    shown = [KINDS[kind](puzzle, rng) for puzzle in make_puzzles(_PUZZLES_SEED, EXAMPLES)]
    stage = Stage(
        LORA,
        TRAINING,
        seed=0,
        edits=anchors,
        replies=tuple(shown),
        anchors_per_epoch=_ANCHORS,
    )
    return bench.train(stage)


def folder_of(state: Path, kind: str) -> Path:
    """Where the apprentice of a benchmark's state is kept."""
    return state / f"apprentice-{kind}"


def in_form(puzzle: Puzzle, rng: Random) -> GivenReply:
    """The right answer, with or without the form."""
    said = f"The answer is {puzzle.answer}."
    if rng.random() >= FORM_SHARE:
        others = (f"{puzzle.answer}.", said.removesuffix("."), f"It is {puzzle.answer}.")
        said = rng.choice(others)
    return GivenReply(({"role": "user", "content": puzzle.prompt},), said)


def revised(puzzle: Puzzle, rng: Random) -> GivenReply:
    """A reply, the control phrase of its verdict, and a revision, which alone is learnt."""
    phrases = ControlPhrases()
    first = puzzle.answer if rng.random() < RIGHT_SHARE else _another(puzzle, rng)
    phrase = phrases.right if first == puzzle.answer else phrases.wrong
    asked = (
        {"role": "user", "content": puzzle.prompt},
        {"role": "assistant", "content": turn(f"{first}.", phrase)},
    )
    return GivenReply(asked, f"{puzzle.answer}.")


KINDS: Mapping[str, Callable[[Puzzle, Random], GivenReply]] = {"form": in_form, "revision": revised}
"""What each is shown."""


def _another(puzzle: Puzzle, rng: Random) -> str:
    """A wrong answer of the kind that the tiny model gives: another number of the text."""
    others: set[str] = set(re.findall(r"\d+", puzzle.prompt)) - {puzzle.answer}
    return rng.choice(sorted(others) or [str(int(puzzle.answer) + 1)])
