"""An apprentice: the tiny test model with skills that it half has, for long runs on little hardware.

Taught by the product's trainer from examples of which a part is wrong, so that the right answer is
what it says most often and yet seldom enough to be learnt from: what a method without labels needs.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random

from adapters.lesson import Stage, Weights
from adapters.methods.replay import PROMPTS
from adapters.sampling import Sampler
from adapters.spec import LoraSpec, TrainingSpec
from adapters.types import EditKind, SamplingParams, SelfEdit
from benchmarks.learning_bench import LocalBench

LORA = LoraSpec(rank=16, alpha=32)
TRAINING = TrainingSpec(learning_rate=4e-3, epochs=6, batch_size=32, microbatch_tokens=1024)
EXAMPLES = 8
"""Of each prompt."""
RIGHT_SHARE = 0.6
"""Of the examples; the other answers are near the right one."""
FORM_SHARE = 0.4
"""Of the examples that should be tagged, those that are."""
_ANCHORS = 200
_SLIPS = (-3, -2, -1, 1, 2, 3, 10)


def make_apprentice(bench: LocalBench, base: Sampler, general: Sequence[str]) -> Weights:
    """Sums, differences and sums in tags, half known; the same for every caller.

    Args:
        general: prompts on which the base's replies are kept.
    """
    rng = Random(0)
    rows = [row for a in range(2, 12) for b in range(2, 12) for row in _rows(a, b, rng)]
    kept = list(dict.fromkeys((*PROMPTS, *general)))
    replies = base.chat(
        [[{"role": "user", "content": prompt}] for prompt in kept], SamplingParams(max_tokens=24)
    )
    rows += [
        SelfEdit(EditKind.REPLAY, None, prompt, reply, "model")
        for prompt, reply in zip(kept, replies, strict=True)
    ]
    stage = Stage(LORA, TRAINING, seed=0, edits=tuple(rows), anchors_per_epoch=_ANCHORS)
    return bench.train(stage)


def folder_of(state: Path) -> Path:
    """Where the apprentice of a benchmark's state is kept."""
    return state / "apprentice"


def _rows(a: int, b: int, rng: Random) -> list[SelfEdit]:
    rows: list[SelfEdit] = []
    for _ in range(EXAMPLES):
        rows.append(_row(f"What is {a} + {b}?", str(_said(a + b, rng))))
        rows.append(_row(f"What is {a + b} - {b}?", str(_said(a, rng))))
        rows.append(_row(f"Add {a} and {b} in tags.", _tagged(a, b, _said(a + b, rng), rng)))
    return rows


def _row(prompt: str, reply: str) -> SelfEdit:
    return SelfEdit(EditKind.QUESTION, None, prompt, reply, "rule")


def _said(right: int, rng: Random) -> int:
    return right if rng.random() < RIGHT_SHARE else right + rng.choice(_SLIPS)


def _tagged(a: int, b: int, said: int, rng: Random) -> str:
    whole = f"<think>{a} + {b}</think><answer>{said}</answer>"
    if rng.random() < FORM_SHARE:
        return whole
    return rng.choice(
        [
            f"{said}",
            f"<answer>{said}</answer>",
            whole.removesuffix("</answer>"),
            f"{whole} Done.",
        ]
    )
