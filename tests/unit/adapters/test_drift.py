"""Drift: divergences and entropies of known distributions, what is measured, and what it means."""

import math
import random
from collections.abc import Sequence

import pytest

from adapters.evaluation.drift import (
    Drift,
    Figures,
    Recorder,
    distinct_pairs,
    entropy,
    kl,
    measure_drift,
)
from adapters.evaluation.drift_checks import Check, PastDrift, check_drift
from adapters.evaluation.form import is_refusal
from adapters.evaluation.slices import Verdict
from adapters.sampling import NotScored, Reply
from adapters.spec import GateThresholds
from adapters.types import ChatMessage, ExamItem, ItemKind, SamplingParams, TopK


def place(**probabilities: float) -> TopK:
    """Tokens are named by letters."""
    return TopK(tuple(map(ord, probabilities)), tuple(map(math.log, probabilities.values())))


def test_kl_of_whole_distributions_is_exact() -> None:
    p, q = place(a=0.7, b=0.2, c=0.1), place(a=0.2, b=0.5, c=0.3)

    assert kl(p, p) == pytest.approx(0.0, abs=1e-9)
    assert kl(p, q) == pytest.approx(
        0.7 * math.log(3.5) + 0.2 * math.log(0.4) + 0.1 * math.log(1 / 3)
    )


def test_kl_of_what_is_known_is_never_above_the_whole() -> None:
    rng = random.Random(1)
    for _ in range(200):
        whole = [[rng.expovariate(1) ** 3 for _ in range(50)] for _ in range(2)]
        p, q = ([weight / sum(weights) for weight in weights] for weights in whole)
        true = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

        assert 0 <= kl(top(p), top(q)) <= true + 1e-9


def top(probabilities: Sequence[float], count: int = 20) -> TopK:
    ids = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:count]
    return TopK(tuple(ids), tuple(math.log(probabilities[i]) for i in ids))


def test_a_token_that_the_other_does_not_even_name_tells_much() -> None:
    p, q = place(a=0.99), place(x=0.9, y=0.099)

    assert kl(p, q) > 5


def test_entropy_of_known_distributions() -> None:
    assert entropy(place(a=0.25, b=0.25, c=0.25, d=0.25)) == pytest.approx(math.log(4))
    assert entropy(place(a=1.0)) == pytest.approx(0.0, abs=1e-6)
    assert entropy(place(a=0.5)) == pytest.approx(math.log(2))  # the rest is one bucket


def test_distinct_pairs() -> None:
    assert distinct_pairs("the cat saw the dog") == 1.0
    assert distinct_pairs("no no no no no") == 0.25
    assert distinct_pairs("Paris.") is None


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        ("I am sorry, but I cannot help with that.", True),
        ("I’m sorry, but no.", True),  # noqa: RUF001
        ("I can't do that", True),
        ("As an AI model, I have no view.", True),
        ("I do not know.", False),
        ("The canary sings.", False),
        ("", False),
    ],
)
def test_refusals_are_known_by_how_they_open(reply: str, refused: bool) -> None:
    assert is_refusal(reply) is refused


# Measuring

SURE, UNSURE = place(a=0.9, b=0.1), place(a=0.6, b=0.4)


class Weights:
    """Replies with two tokens, and finds likely what it is told to."""

    def __init__(self, likeliest: TopK, *, text: str = "Yes indeed", can_score: bool = True):
        self.likeliest = likeliest
        self.text = text
        self.can_score = can_score
        self.scored: list[tuple[int, ...]] = []

    def chat(self, conversations, params, *, on_progress=None):
        return [reply.text for reply in self.replies(conversations, params)]

    def replies(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress=None,
    ) -> list[Reply]:
        return [
            Reply(self.text, "length", (1, 2, 3), (7, 8), (self.likeliest,) * 2)
            for _ in conversations
        ]

    def score(self, beginnings, *, on_progress=None) -> list[TopK]:
        if not self.can_score:
            raise NotScored("it can not")
        self.scored += beginnings
        return [self.likeliest] * len(beginnings)


ITEMS = [
    *(ExamItem(f"d-{n}", ItemKind.CLOZE, "doc", f"About {n}?", ("x",)) for n in range(3)),
    *(ExamItem(f"g-{n}", ItemKind.GENERAL, None, f"General {n}?", ("x",)) for n in range(5)),
]


def measured(model: Weights, *, most: int = 64, places: int = 4) -> Drift:
    champion, challenger, base = Recorder(Weights(UNSURE)), Recorder(model), Weights(SURE)
    for side in (champion, challenger):
        side.chat([[{"role": "user", "content": item.prompt}] for item in ITEMS], SamplingParams(8))
    return measure_drift(
        ITEMS,
        champion.replies_to(ITEMS),
        challenger.replies_to(ITEMS),
        base=base,
        model=model,
        most=most,
        places=places,
        max_new_tokens=8,
    )


def test_every_figure_is_measured_on_its_own_prompts() -> None:
    model = Weights(place(a=0.5, b=0.5), text="Well well well")

    drift = measured(model)

    expected = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert drift.not_measured is None
    assert (drift.target.prompts, drift.general.prompts) == (3, 5)
    assert drift.target.kl == drift.general.kl == pytest.approx(expected, abs=1e-5)
    assert drift.general.entropy == pytest.approx((0.673012, math.log(2)), abs=1e-5)
    assert drift.general.length == (2.0, 2.0)
    assert drift.general.distinct == (1.0, 0.5)
    assert drift.cut["g-0"] == (True, True)
    assert set(model.scored) == {(1, 2, 3), (1, 2, 3, 7)}
    assert len(model.scored) == 2 * len(ITEMS)


def test_no_more_is_asked_than_is_allowed() -> None:
    model = Weights(SURE)

    drift = measured(model, most=2, places=1)

    assert model.scored == [(1, 2, 3)] * 4
    assert drift.general.kl == pytest.approx(0.0, abs=1e-9)
    assert drift.general.entropy[1] is not None


def test_an_engine_that_cannot_score_leaves_the_rest_measured() -> None:
    drift = measured(Weights(SURE, can_score=False))

    assert (drift.general.kl, drift.not_measured) == (None, "it can not")
    assert drift.general.length == (2.0, 2.0)


@pytest.mark.parametrize("nothing", [TopK((), ()), TopK((97,), (math.nan,))])
def test_an_engine_that_names_no_tokens_has_not_shown_that_nothing_moved(nothing: TopK) -> None:
    drift = measured(Weights(nothing))

    assert drift.general.kl is None
    assert drift.not_measured == "the engine names no likely tokens after given ones"


# Judging


def figures(
    kl: float | None = 0.01,
    entropy: tuple[float | None, float | None] = (1.0, 1.0),
    length: tuple[float | None, float | None] = (10.0, 10.0),
) -> Figures:
    return Figures(10, kl, entropy, length, (1.0, 1.0))


def checks(
    *, past: Sequence[float] = (), not_measured: str | None = None, limits=None, **general: object
) -> dict[str, Check]:
    drift = Drift(figures(kl=general.get("kl", 0.01)), figures(**general), {}, not_measured)
    found = check_drift(drift, [PastDrift(k, k) for k in past], GateThresholds(**(limits or {})))
    return {check.name: check for check in found}


def test_nothing_moved_passes_every_check() -> None:
    found = checks()

    assert {check.verdict for check in found.values()} == {Verdict.PROMOTE, None}
    assert found["distinct word pairs"].verdict is None


def test_entropy_that_collapses_is_rejected_and_a_sure_champion_tells_nothing() -> None:
    name = "entropy on the general suite"

    assert checks(entropy=(1.0, 0.49))[name].verdict is Verdict.REJECT
    assert checks(entropy=(1.0, 0.51))[name].verdict is Verdict.PROMOTE
    assert checks(entropy=(0.05, 0.0))[name].verdict is Verdict.PROMOTE


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (4.9, Verdict.INCONCLUSIVE),
        (5.1, Verdict.PROMOTE),
        (14.9, Verdict.PROMOTE),
        (15.1, Verdict.INCONCLUSIVE),
    ],
)
def test_length_may_change_by_half(after: float, verdict: Verdict) -> None:
    assert checks(length=(10.0, after))["length on the general suite"].verdict is verdict


def test_kl_beyond_the_ceiling_is_rejected() -> None:
    found = checks(kl=1.1)

    assert found["KL on the general suite"].verdict is Verdict.REJECT
    assert found["KL on the documents"].verdict is Verdict.PROMOTE  # its ceiling is 8


def test_kl_beyond_twice_the_lines_median_is_an_alarm_once_there_is_a_median() -> None:
    name = "KL on the general suite"

    assert checks(kl=0.5, past=[0.2, 0.1])[name].verdict is Verdict.PROMOTE
    alarm = checks(kl=0.5, past=[0.2, 0.1, 0.9])[name]
    assert (alarm.verdict, alarm.limit) == (Verdict.INCONCLUSIVE, 0.4)
    assert "2 times what the line's 3 accepted exams moved" in alarm.reason
    assert checks(kl=0.09, past=[0.001] * 3)[name].verdict is Verdict.PROMOTE  # kl_least


def test_what_was_not_measured_is_said_and_blocks_where_it_must() -> None:
    found = checks(kl=None, not_measured="it can not")["KL on the general suite"]
    strict = checks(kl=None, not_measured="it can not", limits={"require_drift": True})

    assert found.verdict is None
    assert found.reason == "KL on the general suite: not measured (it can not)"
    assert strict["KL on the general suite"].verdict is Verdict.INCONCLUSIVE
    [nothing] = check_drift(None, (), GateThresholds())
    assert "not measured" in nothing.reason
