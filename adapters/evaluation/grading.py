"""Grading replies, each by its item's grader."""

from collections.abc import Sequence

from adapters.evaluation.judge import Claim, Judge
from adapters.rewards.answers import is_correct
from adapters.rewards.exact import is_exact
from adapters.rewards.numbers import is_number_right
from adapters.sampling import Sampler
from adapters.types import ExamItem, Grader


def grade(
    items: Sequence[ExamItem], replies: Sequence[str], judge_sampler: Sampler | None = None
) -> list[bool]:
    """Whether each reply is right, in the order of the items.

    `judge_sampler` is a trusted judge's model; without it items for the judge are graded by match.

    Raises:
        SamplingError: the judge's engine failed.
        ValueError: there are not as many replies as items.
    """
    verdicts: dict[int, bool] = {}
    claims: dict[int, Claim] = {}
    for place, (item, reply) in enumerate(zip(items, replies, strict=True)):
        if grader_of(item, is_judge_trusted=judge_sampler is not None) is Grader.JUDGE:
            claims[place] = Claim(item.prompt, item.answers, reply)
        else:
            verdicts[place] = _is_right_by_rule(item, reply)
    if claims and judge_sampler is not None:
        said = Judge(judge_sampler).verdicts(list(claims.values()))
        verdicts |= dict(zip(claims, said, strict=True))
    return [verdicts[place] for place in range(len(items))]


def grader_of(item: ExamItem, *, is_judge_trusted: bool) -> Grader:
    """How an item is really graded: in place of a judge that is not trusted, by match."""
    if item.grader is Grader.JUDGE and not is_judge_trusted:
        return Grader.MATCH
    return item.grader


def _is_right_by_rule(item: ExamItem, reply: str) -> bool:
    if item.grader is Grader.NUMERIC:
        return is_number_right(reply, item.answers, question=item.prompt)
    if item.grader is Grader.EXACT:
        return is_exact(reply, item.answers)
    return is_correct(reply, item.answers)
