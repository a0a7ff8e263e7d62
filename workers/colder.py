"""SePT's exam beside the same model at a colder decoding: how many right answers each of them gives.

SePT sharpens what a model prefers, and so does a lower temperature, for nothing. So the champion is
asked the run's held-out prompts once more, as cold as makes it as sure of its words as the challenger
is. It is told, and changes no verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from adapters.evaluation.colder import colder_temperature
from adapters.evaluation.exam import Answer
from adapters.evaluation.prompt_exam import HeldPrompt, VerifierOf, mark, sit_prompts
from adapters.sampling import MeasuringSampler, NotScored
from adapters.spec import SeptConfig
from adapters.types import JSON, ProgressCallback
from workers.prompt_exam import PromptSheet


@dataclass(frozen=True, slots=True)
class Colder:
    """What came of the comparison."""

    sentence: str
    """For the exam's reasons."""
    figures: dict[str, JSON] = field(default_factory=dict)
    """Prompts, the temperatures, and right answers; empty where nothing was measured."""

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON, for the run's report."""
        return {"sentence": self.sentence, **self.figures}


def compare(
    prompts: Sequence[HeldPrompt],
    sheet: PromptSheet,
    config: SeptConfig,
    verifier_of: VerifierOf,
    *,
    champion: MeasuringSampler,
    challenger: MeasuringSampler,
    on_progress: ProgressCallback | None = None,
) -> Colder:
    """Right answers of champion, colder champion and challenger to the run's own held-out prompts.

    Raises:
        SamplingError: the engine did not answer.
    """
    warm = config.prompt_exam.temperature
    marked = {answer.item_id for answer in sheet.champion}
    asked = [held for held in prompts if not held.is_earlier and held.prompt.id in marked]
    if not asked:
        return _not_measured("no held-out prompt of the run was asked")
    if not warm:
        return _not_measured("the exam decodes at temperature 0, and nothing is colder")
    try:
        share = colder_temperature(
            challenger,
            champion,
            [held.prompt.messages for held in asked[: config.probe.prompts]],
            asked[0].params,
        )
    except NotScored as error:
        return _not_measured(str(error))
    if share is None:
        return _not_measured("at no temperature from 0.1 to 1 is the champion as sure")
    # As sure as the challenger at 1 is as sure, by the same factor, at any other temperature.
    cold = [replace(held, params=replace(held.params, temperature=share * warm)) for held in asked]
    replies = sit_prompts(cold, champion, on_progress=on_progress)
    verdicts = mark(cold, replies, verifier_of)
    told = {
        held.prompt.id: bool(is_right)
        for held, is_right in zip(cold, verdicts, strict=True)
        if is_right is not None
    }
    before, after = (_right(answers, told) for answers in (sheet.champion, sheet.challenger))
    return _compared(len(told), before, sum(told.values()), after, share * warm, warm)


def _compared(
    prompts: int, champion: int, colder: int, challenger: int, cold: float, warm: float
) -> Colder:
    return Colder(
        f"for comparison, no part of the verdict: of {prompts} new prompts the champion has "
        f"{champion} right at temperature {warm:.2g}, {colder} at {cold:.2g}, where it is as sure of "
        f"its words as the challenger, and the challenger {challenger} at {warm:.2g}",
        {
            "prompts": prompts,
            "champion": champion,
            "champion_colder": colder,
            "challenger": challenger,
            "temperature": warm,
            "colder_temperature": round(cold, 3),
        },
    )


def _not_measured(why: str) -> Colder:
    return Colder(f"the champion at a colder decoding: not measured ({why})")


def _right(answers: Sequence[Answer], told: dict[str, bool]) -> int:
    return sum(answer.is_correct for answer in answers if answer.item_id in told)
