"""Sitting an exam: each item asked alone, closed-book and greedily, and graded as it says."""

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.evaluation.grading import grade
from adapters.sampling import Sampler
from adapters.types import ExamItem, ProgressCallback, SamplingParams


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
    judge_sampler: Sampler | None = None,
    on_progress: ProgressCallback | None = None,
) -> list[Answer]:
    """One answer per item, in their order.

    `judge_sampler` is the model of a judge that is trusted; None grades its items by match.

    Raises:
        SamplingError: the engine could not answer.
    """
    replies = sampler.chat(
        [item.conversation for item in items],
        SamplingParams(max_tokens=max_new_tokens),
        on_progress=on_progress,
    )
    return [
        Answer(item.id, reply, verdict)
        for item, reply, verdict in zip(
            items, replies, grade(items, replies, judge_sampler), strict=True
        )
    ]
