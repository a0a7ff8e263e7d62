"""Sitting an exam: each item asked alone, closed-book and greedily, and graded by rule."""

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.rewards.answers import is_correct
from adapters.rewards.exact import is_exact
from adapters.sampling import Sampler
from adapters.types import ExamItem, Grader, ProgressCallback, SamplingParams


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to one item, and whether it is right."""

    item_id: str
    reply: str
    is_correct: bool


def sit_exam(
    items: Sequence[ExamItem],
    sampler: Sampler,
    *,
    max_new_tokens: int = 32,
    on_progress: ProgressCallback | None = None,
) -> list[Answer]:
    """One answer per item, in their order.

    Raises:
        SamplingError: the engine could not answer.
    """
    replies = sampler.chat(
        [[{"role": "user", "content": item.prompt}] for item in items],
        SamplingParams(max_tokens=max_new_tokens),
        on_progress=on_progress,
    )
    return [
        Answer(item.id, reply, _is_right(item, reply))
        for item, reply in zip(items, replies, strict=True)
    ]


def _is_right(item: ExamItem, reply: str) -> bool:
    judge = is_exact if item.grader is Grader.EXACT else is_correct
    return judge(reply, item.answers)
