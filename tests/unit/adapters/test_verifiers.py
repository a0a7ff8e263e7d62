"""Verifiers by answers and by contracts, and how a spec names one."""

import pytest

from adapters.rewards.build import build_verifier
from adapters.rewards.unit_tests import UnitTests
from adapters.spec import VERIFIER, HttpVerifier, UnitTestsVerifier
from adapters.types import Attempt, Prompt, Verdict


def attempt(reply: str, *answers: str) -> Attempt:
    return Attempt(Prompt("p", ({"role": "user", "content": "?"},), answers=answers), reply)


def judged(spec: dict[str, object], *attempts: Attempt) -> list[Verdict]:
    return build_verifier(VERIFIER.validate_python(spec), None).verify(attempts)


@pytest.mark.parametrize(
    ("answer", "right", "wrong", "known"),
    [
        ({"kind": "number"}, "The answer is 0.5.", "The answer is 5.", "1/2"),
        ({"kind": "math"}, "So \\boxed{\\frac{1}{2}}.", "So \\boxed{2}.", "0.5"),
        ({"kind": "choice"}, "The answer is (B).", "The answer is (C).", "B"),
        ({"kind": "label", "labels": ["spam", "ham"]}, "It is spam.", "It is ham.", "spam"),
        ({"kind": "json"}, '{"b": 1, "a": 2}', '{"a": 1, "b": 2}', '{"a": 2, "b": 1}'),
        ({"kind": "regex", "pattern": r"id=(\w+)"}, "see id=x7", "see id=x8", "x7"),
        ({"kind": "text"}, "Paris", "London", "paris"),
    ],
)
def test_replies_are_judged_by_their_answer(
    answer: dict[str, object], right: str, wrong: str, known: str
) -> None:
    spec = {"type": "answer", "answer": answer}

    found = judged(spec, attempt(right, known), attempt(wrong, known), attempt(right, "", known))

    assert found == [Verdict(True), Verdict(False, "another answer"), Verdict(True)]


def test_any_of_several_answers_is_right() -> None:
    assert judged({"type": "answer"}, attempt("It is 7.", "6", "7")) == [Verdict(True)]


@pytest.mark.parametrize("reply", ["", "   ", "I do not know.", "3 or 4, who knows", "\\boxed{}"])
def test_a_reply_without_an_answer_is_wrong(reply: str) -> None:
    assert judged({"type": "answer"}, attempt(reply, "8")) == [
        Verdict(False, "no answer in the reply")
    ]


def test_without_a_known_answer_nobody_can_tell() -> None:
    assert (
        judged({"type": "answer"}, attempt("8"), attempt("8", " "))
        == [Verdict(None, "no answer is known")] * 2
    )


def test_a_contract_is_kept_or_broken_for_a_reason() -> None:
    schema = {"type": "object", "required": ["answer"]}
    spec = {"type": "contract", "contract": {"type": "json-schema", "json_schema": schema}}

    kept, broken = judged(spec, attempt('{"answer": 8}'), attempt("8 it is"))

    assert kept == Verdict(True)
    assert (broken.is_right, bool(broken.reason)) == (False, True)


class Yes:
    def verify(self, attempts: object) -> list[Verdict]:
        return [Verdict(True)]


def test_a_service_is_the_callers() -> None:
    spec, mine = HttpVerifier(url="https://verify.example/"), Yes()

    assert build_verifier(spec, mine) is mine
    with pytest.raises(ValueError, match="can reach it"):
        build_verifier(spec, None)


def test_unit_tests_are_run_here() -> None:
    assert isinstance(build_verifier(UnitTestsVerifier(), None), UnitTests)
