"""The gate: what promotes, what rejects, what it cannot tell, and laws that hold for all answers."""

import json
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.evaluation.drift import Drift, Figures
from adapters.evaluation.exam import Answer
from adapters.evaluation.form import is_sound
from adapters.evaluation.gate import Decision, PairingError, Verdict, decide
from adapters.spec import GateThresholds
from adapters.types import ExamItem, ItemKind

GENERAL = "general"
RANK = [Verdict.REJECT, Verdict.INCONCLUSIVE, Verdict.PROMOTE]

# A side's answers to the items of a document (or of the general suite), as one string:
# "1" right, "0" wrong, "e" empty, "r" wrong and repeating.
REPLIES = {"1": "It is Aldra.", "0": "I do not know.", "e": " ", "r": "the the " * 8}
Exam = dict[str, tuple[str, str]]


def build(exam: Exam) -> tuple[list[ExamItem], list[Answer], list[Answer]]:
    items, sides = [], ([], [])
    for name, answers in exam.items():
        document = None if name == GENERAL else name
        kind = ItemKind.GENERAL if document is None else ItemKind.CLOZE
        for number, marks in enumerate(zip(*answers, strict=True)):
            id_ = f"{name}-{number:02}"
            items.append(ExamItem(id_, kind, document, f"Question {id_}?", ("Aldra",)))
            for side, mark in zip(sides, marks, strict=True):
                side.append(Answer(item_id=id_, reply=REPLIES[mark], is_correct=mark == "1"))
    return items, *sides


def judge(exam: Exam, *, new: Sequence[str] = ("new",), **thresholds: object) -> Decision:
    earlier = [name for name in exam if name not in new and name != GENERAL]
    return decide(
        *build(exam),
        new_documents=new,
        earlier_documents=earlier,
        thresholds=GateThresholds(**thresholds),
    )


UNHARMED = ("1" * 34 + "0" * 6, "1" * 34 + "0" * 6)
LEARNT = ("1" + "0" * 11, "1" * 9 + "0" * 3)


def verdict_of(decision: Decision, name: str) -> Verdict | None:
    return next(result.verdict for result in decision.slices if result.name == name)


def test_a_clear_gain_without_loss_is_promoted():
    decision = judge({"new": LEARNT, GENERAL: UNHARMED})

    assert decision.verdict is Verdict.PROMOTE
    assert decision.reasons[0] == "new documents: 1 of 12 -> 9 of 12, p = 0.0039"
    assert decision.further_items is None


def test_no_gain_is_rejected():
    decision = judge({"new": ("1" + "0" * 11,) * 2, GENERAL: UNHARMED})

    assert decision.verdict is Verdict.REJECT
    assert decision.reasons[0].endswith("nothing gained")


def test_a_gain_that_chance_explains_is_inconclusive_and_says_how_many_more():
    decision = judge({"new": ("0" * 12, "111" + "0" * 9), GENERAL: UNHARMED})

    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.further_items == 14
    assert decision.reasons[0] == (
        "new documents: 0 of 12 -> 3 of 12, p = 0.12: chance could explain it; "
        "about 14 more items would tell"
    )


def test_too_few_items_are_inconclusive_however_good():
    decision = judge({"new": ("0" * 4, "1" * 4), GENERAL: UNHARMED})

    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.further_items == 1


def test_new_documents_without_items_are_inconclusive():
    decision = judge({GENERAL: UNHARMED})

    assert decision.verdict is Verdict.INCONCLUSIVE
    assert "new documents: 0 of 0 -> 0 of 0: too few items" in decision.reasons[0]


def test_a_significant_loss_of_general_ability_is_rejected():
    decision = judge({"new": LEARNT, GENERAL: ("1" * 40, "1" * 34 + "0" * 6)})

    assert decision.verdict is Verdict.REJECT
    assert verdict_of(decision, "general suite") is Verdict.REJECT
    assert "chance does not explain (p = 0.016)" in " ".join(decision.reasons)


def test_four_of_forty_general_items_may_go():
    assert judge({"new": LEARNT, GENERAL: ("1" * 40, "1" * 36 + "0" * 4)}).verdict is (
        Verdict.PROMOTE
    )


def test_a_noisy_loss_beyond_the_margin_is_inconclusive():
    exam = {"new": LEARNT, GENERAL: ("1" * 30 + "0" * 10, "0" * 9 + "1" * 21 + "1111" + "0" * 6)}

    decision = judge(exam)

    assert decision.verdict is Verdict.INCONCLUSIVE
    assert verdict_of(decision, "general suite") is Verdict.INCONCLUSIVE
    assert decision.further_items is not None


def test_a_significant_loss_within_the_margin_is_still_rejected():
    exam = {"new": LEARNT, GENERAL: ("1" * 200, "1" * 190 + "0" * 10)}

    assert judge(exam).verdict is Verdict.REJECT


def test_a_general_suite_that_is_missing_or_blind_is_told():
    missing = judge({"new": LEARNT})
    blind = judge({"new": LEARNT, GENERAL: ("0" * 40, "0" * 40)})

    assert missing.verdict is Verdict.INCONCLUSIVE
    assert blind.verdict is Verdict.PROMOTE
    assert "no loss could show" in " ".join(blind.reasons)
    assert judge({"new": LEARNT}, min_general_items=0).verdict is Verdict.PROMOTE


def test_a_collapsed_earlier_document_blocks_even_when_small():
    exam = {"new": LEARNT, "old": ("1111", "1000"), GENERAL: UNHARMED}

    decision = judge(exam)

    assert decision.verdict is Verdict.INCONCLUSIVE
    assert verdict_of(decision, "document old") is Verdict.INCONCLUSIVE


def test_one_item_of_each_of_two_earlier_documents_is_within_the_document_margin_only():
    exam = {
        "new": LEARNT,
        "old-a": ("11111", "11110"),
        "old-b": ("11111", "11110"),
        GENERAL: UNHARMED,
    }

    decision = judge(exam)

    assert verdict_of(decision, "document old-a") is Verdict.PROMOTE
    assert verdict_of(decision, "earlier documents") is Verdict.INCONCLUSIVE


def test_losing_what_was_learnt_before_is_rejected():
    exam = {"new": LEARNT, "old": ("1" * 10, "0" * 8 + "11"), GENERAL: UNHARMED}

    assert judge(exam).verdict is Verdict.REJECT


def test_empty_and_repeating_replies_are_rejected():
    exam = {"new": LEARNT, GENERAL: ("1" * 34 + "0" * 6, "1" * 34 + "eeerrr")}

    decision = judge(exam)

    assert decision.verdict is Verdict.REJECT
    assert verdict_of(decision, "form") is Verdict.REJECT
    assert verdict_of(decision, "general suite") is Verdict.PROMOTE


def test_learning_again_needs_no_gain_but_no_loss():
    kept = {"old": ("1" * 8 + "0" * 4,) * 2, GENERAL: UNHARMED}
    lost = {"old": ("1" * 8 + "0" * 4, "0" * 12), GENERAL: UNHARMED}

    assert judge(kept, new=()).verdict is Verdict.PROMOTE
    assert judge(lost, new=()).verdict is Verdict.REJECT


def test_nothing_asked_is_inconclusive():
    decision = judge({}, min_general_items=0)

    assert (decision.verdict, decision.reasons) == (Verdict.INCONCLUSIVE, ("nothing was asked",))


def test_the_table_shows_each_document_and_each_part_of_the_general_suite():
    decision = judge({"new": LEARNT, "old": ("11", "11"), GENERAL: UNHARMED})

    assert [result.name for result in decision.slices] == [
        "new documents",
        "document new",
        "earlier documents",
        "document old",
        "general suite",
        "general: general",
        "form",
        "not refused",
    ]


def test_a_decision_is_json():
    decision = judge({"new": LEARNT, GENERAL: UNHARMED})

    restored = json.loads(json.dumps(decision.to_json(), allow_nan=False))

    assert restored == decision.to_json()
    assert restored["verdict"] == "promote"
    assert restored["slices"][0] == {
        "name": "new documents",
        "items": 12,
        "champion": 1,
        "challenger": 9,
        "gained": 8,
        "lost": 0,
        "p_gain": 0.00390625,
        "p_loss": 1.0,
        "interval": pytest.approx([0.417, 0.917], abs=0.01),
        "verdict": "promote",
        "further_items": None,
        "lower": pytest.approx(0.36, abs=0.01),
    }


def test_answers_that_do_not_pair_are_refused():
    items, champion, challenger = build({"new": LEARNT, GENERAL: UNHARMED})
    lists = {"new_documents": ["new"], "earlier_documents": []}
    stray = Answer(item_id="x", reply="", is_correct=False)

    for arguments, message in [
        ((items, champion[1:], challenger), "the champion has no answer to item new-00"),
        ((items, champion, challenger[:-1]), "the challenger has no answer to item general-39"),
        ((items, champion, [*challenger, stray]), "the challenger answers x, which is not among"),
        ((items, [*champion, champion[0]], challenger), "new-00 stands twice among the champion"),
        (([*items, items[0]], champion, challenger), "new-00 stands twice among the items"),
    ]:
        with pytest.raises(PairingError, match=message):
            decide(*arguments, **lists)


def test_documents_that_are_in_no_list_or_both_are_refused():
    exam = build({"new": LEARNT})

    with pytest.raises(PairingError, match="document new is neither new nor earlier"):
        decide(*exam, new_documents=[], earlier_documents=[])
    with pytest.raises(PairingError, match="document new is called both new and earlier"):
        decide(*exam, new_documents=["new"], earlier_documents=["new"])


@pytest.mark.parametrize(
    ("reply", "sound"),
    [
        ("Paris.", True),
        ("no", True),
        ("東京です", True),
        ("ha ha ha", True),
        ("the cat and the dog and the cow and the hen", True),
        ("", False),
        (" \n", False),
        ("...", False),
        ("the the the the the the the the", False),
        ("balcony of balcony of balcony of balcony of", False),
        ("aaaaaaaaaaaaaaaaaaaaaa", False),
    ],
)
def test_the_form_of_a_reply(reply: str, sound: bool):
    assert is_sound(reply) is sound


def answers(size: int) -> st.SearchStrategy[str]:
    return st.text("01", min_size=size, max_size=size)


@st.composite
def exams(draw: st.DrawFn) -> Exam:
    sizes = {"new": draw(st.integers(0, 14)), "old": draw(st.integers(0, 10)), GENERAL: 12}
    return {name: (draw(answers(n)), draw(answers(n))) for name, n in sizes.items()}


@given(exams(), st.randoms())
@settings(deadline=None)
def test_a_right_answer_more_never_makes_the_verdict_worse(exam: Exam, chance: random.Random):
    before = judge(exam)
    wrong = [(name, i) for name, (_, b) in exam.items() for i, mark in enumerate(b) if mark == "0"]
    if not wrong:
        return
    name, place = chance.choice(wrong)
    champion, challenger = exam[name]
    improved = challenger[:place] + "1" + challenger[place + 1 :]

    after = judge(exam | {name: (champion, improved)})

    assert RANK.index(after.verdict) >= RANK.index(before.verdict)


@given(exams(), st.randoms())
@settings(deadline=None)
def test_the_order_of_items_and_answers_does_not_matter(exam: Exam, chance: random.Random):
    lists = {"new_documents": ["new"], "earlier_documents": ["old"]}
    triple = build(exam)
    shuffled = [chance.sample(part, len(part)) for part in triple]

    assert decide(*shuffled, **lists) == decide(*triple, **lists)


@given(exams())
@settings(deadline=None)
def test_a_version_never_replaces_its_equal_where_something_new_was_taught(exam: Exam):
    same = {name: (champion, champion) for name, (champion, _) in exam.items()}

    assert judge(same).verdict is not Verdict.PROMOTE


@given(st.text("01er", min_size=20, max_size=20), st.text("01er", min_size=20, max_size=20))
@settings(deadline=None)
def test_thresholds_that_allow_everything_still_reject_what_is_significant(a: str, b: str):
    loose = dict.fromkeys(
        ("general_margin_share", "form_margin_share", "earlier_margin_share"), 1.0
    )

    decision = judge({GENERAL: (a, b)}, new=(), **loose)

    judged = [result for result in decision.slices if result.verdict is not None]
    assert (decision.verdict is Verdict.REJECT) == any(r.p_loss <= 0.05 for r in judged)


def test_thresholds_survive_json():
    thresholds = GateThresholds(alpha=0.01, min_new_items=8)

    assert GateThresholds.model_validate_json(thresholds.model_dump_json()) == thresholds


# Non-inferiority, drift, power


def test_a_strict_gate_asks_for_the_proof_and_says_how_many_questions_it_takes():
    exam = {"new": LEARNT, "old": ("1" * 40, "1" * 40), GENERAL: ("1" * 40, "1" * 39 + "0")}

    lax, strict = judge(exam), judge(exam, mode="non_inferiority")

    assert lax.verdict is Verdict.PROMOTE
    assert strict.verdict is Verdict.INCONCLUSIVE
    assert verdict_of(strict, "document old") is Verdict.PROMOTE  # margin a quarter
    needs = {need.slice: need for need in strict.needs}
    assert set(needs) == {"general suite"}
    assert needs["general suite"].documents == ()
    assert "is not ruled out; about" in " ".join(strict.reasons)


def test_five_hundred_items_prove_what_forty_cannot():
    exam = {
        "new": LEARNT,
        "old": ("1" * 500, "1" * 495 + "0" * 5),
        GENERAL: ("0" * 5 + "1" * 495, "1" * 495 + "0" * 5),
    }

    assert judge(exam, mode="non_inferiority", alpha=0.01).verdict is Verdict.PROMOTE


def test_a_harmful_candidate_is_seldom_proven_harmless():
    """At a true loss of exactly the margin, the proof comes with probability alpha at most."""
    rng, promoted = random.Random(2), 0
    for _ in range(150):
        after = "".join(rng.choices("01", (0.1, 0.9), k=100))
        exam = {"new": LEARNT, GENERAL: ("1" * 100, after)}
        promoted += judge(exam, mode="non_inferiority").verdict is Verdict.PROMOTE

    assert promoted / 150 <= 0.1  # 0.05, and three standard errors of chance


def test_harm_to_one_of_many_earlier_documents_is_found_by_holm():
    """Bonferroni's bound for six tests is 0.0083; the second loss stands only after the first."""
    harmed = {"old-a": ("1" * 9, "0" * 9), "old-b": ("1" * 7, "0" * 7)}
    kept = {f"old-{name}": ("1" * 9, "1" * 9) for name in "cdef"}

    decision = judge({"new": LEARNT, **harmed, **kept, GENERAL: UNHARMED})

    assert verdict_of(decision, "document old-a") is Verdict.REJECT
    assert verdict_of(decision, "document old-b") is Verdict.REJECT
    assert verdict_of(decision, "document old-c") is Verdict.PROMOTE


def test_false_alarms_over_many_documents_are_rare():
    """Ten documents that only flutter: any rejection is false."""
    rng, alarms = random.Random(4), 0
    for _ in range(100):
        exam = {
            f"old-{n}": tuple("".join(rng.choices("01", (0.3, 0.7), k=20)) for _ in range(2))
            for n in range(10)
        }
        decision = judge({**exam, GENERAL: UNHARMED}, new=())
        alarms += any(
            result.verdict is Verdict.REJECT
            for result in decision.slices
            if result.name.startswith("document ")
        )

    assert alarms / 100 <= 0.11  # 0.05 at most, and chance


def test_an_inconclusive_gain_names_the_documents_to_ask_about():
    decision = judge({"new": ("0" * 12, "111" + "0" * 9), GENERAL: UNHARMED})

    assert [need.to_json() for need in decision.needs] == [
        {"slice": "new documents", "items": 14, "documents": ["new"]}
    ]


def test_refusals_are_rejected_whatever_they_do_to_the_score():
    items, champion, challenger = build({"new": LEARNT, GENERAL: ("0" * 40, "0" * 40)})
    refused = [
        Answer(a.item_id, "I cannot help with that." if "general" in a.item_id else a.reply, False)
        if "general" in a.item_id
        else a
        for a in challenger
    ]

    decision = decide(items, champion, refused, new_documents=["new"], earlier_documents=[])

    assert decision.verdict is Verdict.REJECT
    assert verdict_of(decision, "not refused") is Verdict.REJECT


def test_replies_that_never_end_are_rejected():
    exam = build({"new": LEARNT, GENERAL: UNHARMED})
    cut = Drift(cut={item.id: (False, True) for item in exam[0]})

    decision = decide(*exam, new_documents=["new"], earlier_documents=[], drift=cut)

    assert verdict_of(decision, "not cut off") is Verdict.REJECT


def test_drift_alone_can_reject():
    far = Drift(general=Figures(prompts=40, kl=3.0))

    decision = decide(
        *build({"new": LEARNT, GENERAL: UNHARMED}),
        new_documents=["new"],
        earlier_documents=[],
        drift=far,
    )

    assert decision.verdict is Verdict.REJECT
    assert decision.to_json()["drift"]["general"]["kl"] == 3.0
    json.dumps(decision.to_json(), allow_nan=False)
