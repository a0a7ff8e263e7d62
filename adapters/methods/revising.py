"""What SD-Zero's first phase learns from: a reply, its verdict and a revision, in one turn.

`turn` alone lays the turn out, for sampling, for both losses and for the teacher of the second phase.
The losses are those of arXiv 2604.12002, section 3.1, in one pass; what is not learnt is counted by
its reason.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from adapters.spec import ControlPhrases, RevisionSpec
from adapters.types import JSON, Component, Prompt, Rollout, TrainingSample, Verdict

EMPTY = "the reply is empty"
CUT_OFF = "the reply was cut off"
REVISION_CUT_OFF = "the revision was cut off"
REVISION_WRONG = "the revision is not right"
REPEATS_ITSELF = "the revision repeats itself"
SAID_BEFORE = "the same revision again"
TOO_LONG = "longer than training.max_tokens"
LAID_OUT_OTHERWISE = "the engine laid the turn out otherwise"
UNTOLD = "the verifier could not tell"

_LONGEST_UNIT = 300
_LEAST_REPEATED = 60


@dataclass(frozen=True, slots=True)
class Judged:
    """A reply to a prompt, with its verdict."""

    prompt: Prompt
    rollout: Rollout
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Revised:
    """A revision of a reply, with its verdict; `of` is the reply's place among the judged ones."""

    of: int
    rollout: Rollout
    verdict: Verdict


@dataclass(slots=True)
class KeptRevisions:
    """What phase 1 learns, and an account of it."""

    units: list[TrainingSample] = field(default_factory=list)
    corrected: int = 0
    """Right revisions of wrong replies."""
    rephrased: int = 0
    """Right revisions of right ones."""
    dropped: Counter[str] = field(default_factory=Counter)


def turn(reply: str, phrase: str) -> str:
    """The beginning of an assistant's turn that comes to a revision, or to the teacher's copy.

    Without the reply's outer white space, which chat templates may strip or not, and without what it
    repeats at its end.
    """
    return without_repeated_tail(reply.strip()) + joint(phrase)


def without_repeated_tail(text: str) -> str:
    """The text with a passage that it ends with three times or more said once.

    Passages of up to 300 characters are found, where the repeats have 60 or more together.
    """
    for period in range(1, min(_LONGEST_UNIT, len(text) // 3) + 1):
        same = 0
        while same < len(text) - period and text[-1 - same] == text[-1 - same - period]:
            same += 1
        if same >= max(2 * period, _LEAST_REPEATED):
            return text[: len(text) - same + same % period].rstrip()  # ends as it did
    return text


def revision_sample(
    first: Rollout, revision: Rollout, spec: RevisionSpec, *, group: str | None = None
) -> TrainingSample | None:
    """Both losses of phase 1 on one turn; None where the engine did not go on with the prompt.

    The revision's own prompt is the tokens of prompt, reply and phrase. Each loss is a mean over
    its tokens: those after the prompt, and those of the revision.
    """
    head, ids = len(first.prompt_ids), revision.prompt_ids + revision.ids
    if ids[:head] != first.prompt_ids or len(revision.prompt_ids) <= head or not revision.ids:
        return None
    shown, said = len(revision.prompt_ids) - head, len(revision.ids)
    generation = spec.generation_weight / (shown + said)
    weights = (generation,) * shown + (generation + spec.revision_weight / said,) * said
    trained = tuple(weight > 0 for weight in weights)
    return TrainingSample(
        ids,
        (False,) * head + trained,
        weights={Component.CE: tuple(weight for weight in weights if weight > 0)},
        mass=1.0,
        group=group,
    )


def keep_revisions(
    first: Sequence[Judged], revised: Sequence[Revised], spec: RevisionSpec
) -> KeptRevisions:
    """The rows of phase 1: right revisions, each said once, that are whole and fit.

    Args:
        first: all first replies; those that are not revised are counted, too.
        revised: what was made of some of them.
    """
    kept = KeptRevisions()
    seen: set[tuple[int, str]] = set()
    for each in first:
        if (fault := _fault_of_first(each)) is not None:
            kept.dropped[fault] += 1
    for one in revised:
        fault = _fault_of_revision(one)
        sample = None if fault else revision_sample(first[one.of].rollout, one.rollout, spec)
        if fault is None and (one.of, one.rollout.text.strip()) in seen:
            fault = SAID_BEFORE
        elif fault is None and sample is None:
            fault = LAID_OUT_OTHERWISE
        elif sample is not None and len(sample.ids) > spec.training.max_tokens:
            fault = TOO_LONG
        if fault is not None or sample is None:
            kept.dropped[fault or LAID_OUT_OTHERWISE] += 1
            continue
        seen.add((one.of, one.rollout.text.strip()))
        kept.units.append(sample)
        if first[one.of].verdict.is_right:
            kept.rephrased += 1
        else:
            kept.corrected += 1
    return kept


def _fault_of_first(one: Judged) -> str | None:
    """Why a reply is not revised at all."""
    if one.verdict.is_right is None:
        return UNTOLD
    if not one.rollout.text.strip():
        return EMPTY
    return CUT_OFF if one.rollout.is_truncated else None


def is_revised(one: Judged, spec: RevisionSpec) -> bool:
    """Whether a revision of this reply is asked for."""
    return _fault_of_first(one) is None and (spec.revises_right or not one.verdict.is_right)


def _fault_of_revision(one: Revised) -> str | None:
    """Why a revision is not learnt."""
    if one.verdict.is_right is None:
        return UNTOLD
    if not one.verdict.is_right:
        return REVISION_WRONG
    if one.rollout.is_truncated:
        return REVISION_CUT_OFF
    text = one.rollout.text.strip()
    return REPEATS_ITSELF if without_repeated_tail(text) != text else None


def phrase_of(verdict: Verdict, phrases: ControlPhrases) -> str:
    """What tells the model that its reply was right, or wrong."""
    return phrases.right if verdict.is_right else phrases.wrong


def joint(phrase: str) -> str:
    """What stands between a reply and its revision."""
    return f"\n\n{phrase}\n\n"


def reasons_of(verdicts: Iterable[Verdict]) -> dict[str, JSON]:
    """How often each reason was given, the most frequent first."""
    counts = Counter(verdict.reason for verdict in verdicts if verdict.reason)
    return dict(counts.most_common())
