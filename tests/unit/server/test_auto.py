"""Which method `auto` takes, and what it says of the others."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.spec import METHODS, JsonSchemaContract, RegexContract, SeptConfig, TagsContract
from server.core.settings import LearningSettings
from server.services import plans, reply_forms
from server.services.auto import NOTHING, Facts, Tried, choose

ENOUGH = {"prompts": 64, "replies": 64}


@pytest.mark.parametrize(
    ("facts", "method"),
    [
        (Facts(), None),
        (Facts(documents=2), "seal"),
        (Facts(documents=2, document_method="distill"), "distill"),
        (Facts(prompts=64, answered=40), "sd-zero"),
        (Facts(prompts=64, tested=64), "sd-zero"),
        (Facts(prompts=64, verifier="http"), "sd-zero"),
        (Facts(prompts=64, answered=10), None),
        (Facts(prompts=8, answered=8), None),
        (Facts(thumbs_up=250, thumbs_down=50), "kto"),
        (Facts(thumbs_up=299), None),
        (Facts(thumbs_up=299, thumbs_down=1), None),
        (Facts(corrections=50), "corrections"),
        (Facts(corrections=49), None),
        (Facts(**ENOUGH, answer_kinds={"number": 0.8}), "ttrl"),
        (Facts(**ENOUGH, answer_kinds={"number": 0.3, "choice": 0.3}), None),
        (Facts(prompts=64, replies=3, answer_kinds={"number": 1.0}), None),
        (Facts(**ENOUGH, has_contract=True, well_formed=0.5), "specs"),
        (Facts(**ENOUGH, has_contract=True, well_formed=0.95), None),
        (Facts(**ENOUGH, has_contract=True, well_formed=None), None),
        (Facts(prompts=300, is_tuned=False), "sept"),
        (Facts(prompts=300, is_tuned=True), None),
        (
            Facts(prompts=64, answered=64, tried={"sd-zero": Tried("r", "reject", 10, 54)}),
            "sd-zero",
        ),
        (Facts(prompts=64, answered=64, tried={"sd-zero": Tried("r", "reject", 33, 31)}), None),
        (Facts(prompts=41, answered=41, tried={"sd-zero": Tried("r", "reject", 10, 31)}), None),
        (Facts(prompts=310, is_tuned=False, tried={"sept": Tried("r", "reject", 11, 299)}), None),
    ],
)
def test_the_first_that_fits_is_taken(facts: Facts, method: str | None) -> None:
    assert choose(facts).method == method


def test_form_comes_before_answers_and_answers_before_votes() -> None:
    facts = Facts(
        **ENOUGH,
        answered=64,
        thumbs_up=300,
        thumbs_down=300,
        answer_kinds={"choice": 1.0},
        has_contract=True,
        well_formed=0.1,
    )

    found = choose(facts)

    assert found.method == "specs"
    assert found.why == "90% of 64 logged replies of the champion break the contract"
    assert [name for name, why in found.rejected.items() if "specs comes first" in why] == [
        "sd-zero",
        "kto",
        "ttrl",
    ]


def test_what_was_found_of_the_answers_goes_to_the_method() -> None:
    votes = choose(Facts(**ENOUGH, answer_kinds={"choice": 0.9}))
    checked = choose(Facts(prompts=64, answered=64, answers_are="text"))

    assert votes.config == {"answer": {"kind": "choice"}}
    assert checked.config == {"verifier": {"type": "answer", "answer": {"kind": "text"}}}


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"answer_kinds": {"choice": 0.3, "number": 0.1}}, "choice"),
        ({"answer_kinds": {"choice": 0.3}, "answered": 9, "answers_are": "text"}, "text"),
        ({}, None),
    ],
)
def test_the_exam_of_sept_reads_the_answers_that_were_found(
    facts: dict[str, Any], kind: str | None
) -> None:
    choice = choose(Facts(prompts=300, is_tuned=False, **facts))

    assert choice.method == "sept"
    assert choice.config == ({} if kind is None else {"prompt_exam": {"answer": {"kind": kind}}})


def test_what_was_found_yields_to_what_the_settings_say_of_the_exam() -> None:
    found = {"prompt_exam": {"answer": {"kind": "choice"}}}
    wish = plans.Wish("auto", config={"sept": {"prompt_exam": {"share": 0.5}}})
    said = SeptConfig.model_validate({"prompt_exam": {"answer": {"kind": "math"}}})

    plain, own = (
        plans._config(LearningSettings(sept=sept), "sept", wish, found, None)
        for sept in (SeptConfig(), said)
    )

    assert isinstance(plain, SeptConfig)
    assert isinstance(own, SeptConfig)
    assert (plain.prompt_exam.answer.kind, plain.prompt_exam.share) == ("choice", 0.5)
    assert own.prompt_exam.answer.kind == "math"


@given(
    st.builds(
        Facts,
        documents=st.integers(0, 3),
        prompts=st.integers(0, 400),
        answered=st.integers(0, 400),
        thumbs_up=st.integers(0, 400),
        thumbs_down=st.integers(0, 400),
        corrections=st.integers(0, 80),
        replies=st.integers(0, 20),
        is_tuned=st.booleans(),
        has_contract=st.booleans(),
        well_formed=st.none() | st.floats(0, 1),
    )
)
def test_every_choice_gives_a_reason_for_each_method(facts: Facts) -> None:
    found = choose(facts)

    assert all(found.rejected.values())
    assert found.method not in found.rejected
    assert (found.method is None) == (found.why == NOTHING)
    assert {*found.rejected, found.method} - {None} <= set(METHODS)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("8", "number"),
        ("Three and five are\n8.", "number"),
        ("The sum is 1,024.", "number"),
        ("1/2", "number"),
        ("So \\boxed{x^2}", "math"),
        ("B", "choice"),
        ("The answer is (C).", "choice"),
        ('{"city": "Rome"}', "json"),
        ("Rome is the capital of Italy and lies on the Tiber.", None),
        ("I like it", None),
        ("", None),
    ],
)
def test_a_glance_tells_what_kind_of_answer_a_reply_gives(reply: str, kind: str | None) -> None:
    assert reply_forms.answer_kinds([reply]) == ({} if kind is None else {kind: 1.0})


def test_a_glance_at_the_form() -> None:
    replies = ['{"a": 1}', "no", "<think>a</think><answer>b</answer>", "[1"]

    assert reply_forms.well_formed(replies, JsonSchemaContract()) == 0.25
    assert reply_forms.well_formed(replies, TagsContract()) == 0.25
    assert reply_forms.well_formed(replies, RegexContract(pattern="(a+)+$")) is None
    assert reply_forms.well_formed([], JsonSchemaContract()) is None
