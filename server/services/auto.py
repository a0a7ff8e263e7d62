"""Which method fits what there is to learn from: a pure choice, with its reasons.

The order is that of who knows best what is right: the form by code first, because it is cheap and
what follows builds on it; then whoever can check an answer; then users; then the model's own
majority; and the model alone last. Whether it is worth it (pass rates, agreement) only rollouts can
tell: a run that finds it is not ends without an update.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters.spec import AutoSpec

NOTHING = "Nothing fits."


@dataclass(frozen=True, slots=True)
class Tried:
    """A method's last run on the line, where nothing came of it for what still serves."""

    run: str
    """Its id."""
    outcome: str
    """How it ended: ``no_update``, ``reject`` or ``inconclusive``."""
    again: int
    """Prompts that there are now and that it had, too."""
    new: int
    """Prompts that it had not."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to learn from, as the database knows it."""

    documents: int = 0
    """New ones."""
    document_method: str = "seal"
    """How the settings learn documents."""
    prompts: int = 0
    """That may be trained on."""
    answered: int = 0
    """Prompts whose right answer is known."""
    answers_are: str = "number"
    """What kind of answer those are."""
    tested: int = 0
    """Prompts that come with tests."""
    verifier: str | None = None
    """One that was configured and needs no known answer: contract or http."""
    thumbs_up: int = 0
    thumbs_down: int = 0
    thumbs_learnt: int = 0
    """Of both, those that a run of `kto` has had."""
    corrections: int = 0
    corrections_learnt: int = 0
    """Of them, those that a run of `corrections` has had."""
    serving: str = "the champion"
    """The name of what serves by default."""
    replies: int = 0
    """Logged replies of it that were looked at."""
    answer_kinds: Mapping[str, float] = field(default_factory=dict)
    """Share of the replies that give a short answer of a kind: `number`, `choice`, `math`, `json`."""
    has_contract: bool = False
    """Whether a form was configured that replies should have."""
    well_formed: float | None = None
    """Share of the replies that keep it; None where no cheap look can tell."""
    is_tuned: bool = True
    """Whether the base model was tuned to follow instructions, by its name."""
    tried: Mapping[str, Tried] = field(default_factory=dict)
    """By method; not those whose last run came to something."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A method, or None, and why."""

    method: str | None
    why: str
    rejected: dict[str, str]
    """Why none of the others, by method."""
    config: dict[str, Any] = field(default_factory=dict)
    """What the method must know of what was found."""

    def as_json(self) -> dict[str, Any]:
        """The reason as a run keeps it."""
        return {"why": self.why, "rejected": self.rejected}


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Whether a method fits."""

    is_fit: bool
    why: str
    config: dict[str, Any] = field(default_factory=dict)


def choose(facts: Facts, spec: AutoSpec | None = None) -> Choice:
    """The first method that fits, in the order of the module's first lines."""
    limits = spec or AutoSpec()
    verdicts = {facts.document_method: _documents(facts)}
    for name, judge in _JUDGES.items():
        verdicts[name] = _unless_in_vain(facts.tried.get(name), judge(facts, limits), name, limits)
    chosen = next((name for name, verdict in verdicts.items() if verdict.is_fit), None)
    rejected = {
        name: f"It would fit, too ({verdict.why}); {chosen} comes first."
        if verdict.is_fit
        else verdict.why
        for name, verdict in verdicts.items()
        if name != chosen
    }
    if chosen is None:
        return Choice(None, NOTHING, rejected)
    return Choice(chosen, verdicts[chosen].why, rejected, verdicts[chosen].config)


def _unless_in_vain(
    tried: Tried | None, verdict: _Verdict, method: str, spec: AutoSpec
) -> _Verdict:
    """The verdict; against a method that would learn in vain once more, and keep those below waiting."""
    if tried is None or not verdict.is_fit:
        return verdict
    asked = spec.many_prompts if method == "sept" else spec.prompts
    needed = max(asked, tried.again)
    if tried.new >= needed:
        return verdict
    return _Verdict(
        False,
        f"{verdict.why}; but its last run, {tried.run}, ended in {tried.outcome}, the same version "
        f"serves, and of the {needed} new prompts that another is worth {tried.new} have come.",
    )


def _documents(facts: Facts) -> _Verdict:
    if not facts.documents:
        return _Verdict(False, "No new document.")
    return _Verdict(True, f"{facts.documents} new documents")


def _specs(facts: Facts, spec: AutoSpec) -> _Verdict:
    if not facts.has_contract:
        return _Verdict(False, "No contract is configured that says what form replies should have.")
    if (few := _too_few(facts, spec.prompts)) is not None:
        return few
    if (few := _too_few_replies(facts, spec, "to judge the form by")) is not None:
        return few
    if facts.well_formed is None:
        return _Verdict(
            False, "No cheap look tells whether replies keep this contract; name specs."
        )
    failing = 1 - facts.well_formed
    if failing < spec.failing:
        return _Verdict(False, f"Only {failing:.0%} of {_replies(facts)} break the contract.")
    return _Verdict(True, f"{failing:.0%} of {_replies(facts)} break the contract")


def _sd_zero(facts: Facts, spec: AutoSpec) -> _Verdict:
    if (few := _too_few(facts, spec.prompts)) is not None:
        return few
    if facts.verifier is not None:
        return _Verdict(True, f"{facts.prompts} prompts and a verifier ({facts.verifier})")
    by_answer = {"type": "answer", "answer": {"kind": facts.answers_are}}
    for count, what, verifier in (
        (facts.answered, "a known answer", by_answer),
        (facts.tested, "tests", {"type": "unit-tests"}),
    ):
        if count and count >= spec.known * facts.prompts:
            why = f"{count} of {facts.prompts} prompts have {what}"
            return _Verdict(True, why, {"verifier": verifier})
    known = max(facts.answered, facts.tested)
    return _Verdict(
        False, f"{known} of {facts.prompts} prompts have known answers or tests; no verifier."
    )


def _grpo(facts: Facts, spec: AutoSpec) -> _Verdict:
    return _Verdict(
        False, "SD-Zero learns from the same verifier with fewer rollouts; name grpo to have it."
    )


def _kto(facts: Facts, spec: AutoSpec) -> _Verdict:
    total = facts.thumbs_up + facts.thumbs_down
    if (few := _too_few_new("thumbs", total, facts.thumbs_learnt, spec.thumbs)) is not None:
        return few
    rarer = min(facts.thumbs_up, facts.thumbs_down)
    if rarer < spec.minority * total:
        return _Verdict(False, f"Only {rarer} of {total} thumbs are of the rarer kind.")
    return _Verdict(True, f"{facts.thumbs_up} thumbs up and {facts.thumbs_down} down")


def _corrections(facts: Facts, spec: AutoSpec) -> _Verdict:
    total, learnt = facts.corrections, facts.corrections_learnt
    if (few := _too_few_new("corrections", total, learnt, spec.corrections)) is not None:
        return few
    return _Verdict(True, f"{total} corrections")


def _ttrl(facts: Facts, spec: AutoSpec) -> _Verdict:
    if (few := _too_few(facts, spec.prompts)) is not None:
        return few
    if (few := _too_few_replies(facts, spec, "to tell whether answers are short")) is not None:
        return few
    kind, share = max(facts.answer_kinds.items(), key=lambda each: each[1], default=("none", 0.0))
    if share < spec.extractable:
        return _Verdict(
            False,
            f"Only {share:.0%} of {_replies(facts)} give a short answer that can be compared.",
        )
    why = f"{share:.0%} of {_replies(facts)} give a short answer ({kind})"
    return _Verdict(True, why, {"answer": {"kind": kind}})


def _sept(facts: Facts, spec: AutoSpec) -> _Verdict:
    if facts.is_tuned:
        return _Verdict(
            False, "The base model is tuned to instructions, by its name; SePT gains nothing there."
        )
    if (few := _too_few(facts, spec.many_prompts)) is not None:
        return few
    why = f"{facts.prompts} prompts, and nobody who knows what is right"
    return _Verdict(True, why, _answers_of_exam(facts))


def _answers_of_exam(facts: Facts) -> dict[str, Any]:
    """How the exam reads answers where the method does not say; empty where nothing was found."""
    kind = max(facts.answer_kinds, key=lambda each: facts.answer_kinds[each], default=None)
    if facts.answered:
        kind = facts.answers_are
    return {} if kind is None else {"prompt_exam": {"answer": {"kind": kind}}}


def _too_few(facts: Facts, needed: int) -> _Verdict | None:
    if facts.prompts >= needed:
        return None
    return _Verdict(False, f"{facts.prompts} prompts to learn from, and {needed} are asked for.")


def _too_few_new(what: str, total: int, learnt: int, needed: int) -> _Verdict | None:
    """A run learns from all, and only new ones start it: else each one more would start it again."""
    if total - learnt >= needed:
        return None
    if not learnt:
        return _Verdict(False, f"{total} {what}, and {needed} are asked for.")
    return _Verdict(
        False,
        f"{total - learnt} {what} beside {learnt} that a run has learnt, and {needed} new ones "
        "are asked for.",
    )


def _too_few_replies(facts: Facts, spec: AutoSpec, what_for: str) -> _Verdict | None:
    if facts.replies >= spec.replies:
        return None
    return _Verdict(
        False,
        f"Only {facts.replies} logged replies of {facts.serving}, which serves now; "
        f"{spec.replies} are needed {what_for}.",
    )


def _replies(facts: Facts) -> str:
    return f"{facts.replies} logged replies of {facts.serving}"


_JUDGES: dict[str, Callable[[Facts, AutoSpec], _Verdict]] = {
    "specs": _specs,
    "sd-zero": _sd_zero,
    "grpo": _grpo,
    "kto": _kto,
    "corrections": _corrections,
    "ttrl": _ttrl,
    "sept": _sept,
}
"""In order."""
