"""The exam on held-out prompts: who is asked what, who marks it, and what the gate makes of it."""

from collections.abc import Sequence
from typing import Any

import pytest

from adapters.evaluation.closeness import is_close
from adapters.evaluation.exam import Answer
from adapters.evaluation.gate import Decision, HeldOutPrompts, PairingError, Verdict, decide
from adapters.evaluation.prompt_exam import (
    NO_ANSWER,
    NO_MAJORITY,
    NO_TESTS,
    Chosen,
    choose_prompts,
    mark,
    marking_of,
    no_verifier,
    sit_prompts,
)
from adapters.spec import METHODS, PromptExamSpec, PromptSettings
from adapters.types import Attempt, ExamItem, Grader, ItemKind, Prompt
from adapters.types import Verdict as Mark
from tests.support.training_bench import SeededSampler
from tests.support.workbench import ScriptedSampler, ScriptedVerifier

SPEC = PromptExamSpec(votes=8, max_items=50)
FORM = {
    "type": "json-schema",
    "json_schema": {"type": "object", "required": ["answer"]},
}


def config(method: str, **fields: Any) -> PromptSettings:
    found = METHODS[method].model_validate(fields)
    assert isinstance(found, PromptSettings)
    return found


def prompt(number: int, *answers: str, tests: str | None = None) -> Prompt:
    said = ({"role": "user", "content": f"What is {number} + 1?"},)
    return Prompt(f"p{number}", said, answers=answers, tests=tests)


def choose(prompts: Sequence[Prompt], asked: PromptSettings, sampler: Any = None) -> Chosen:
    champion = sampler or ScriptedSampler(lambda _: "It is 7.")
    return choose_prompts(prompts, marking_of(asked), SPEC, champion=champion, seed=3)


@pytest.mark.parametrize(
    ("method", "fields", "given", "grader"),
    [
        ("ttrl", {}, ("7",), Grader.ANSWER),
        ("ttrl", {}, (), Grader.MAJORITY),
        ("sept", {}, ("7",), Grader.ANSWER),
        ("grpo", {}, ("7",), Grader.VERIFIER),
        ("grpo", {}, (), Grader.MAJORITY),
        ("grpo", {"verifier": {"type": "http", "url": "http://x/"}}, (), Grader.VERIFIER),
        ("sd-zero", {}, ("7",), Grader.VERIFIER),
        ("specs", {"contract": FORM}, (), Grader.CONTRACT),
        ("corrections", {}, ("It is 7.",), Grader.CORRECTION),
        ("corrections", {}, (), Grader.MAJORITY),
        ("kto", {}, ("7",), Grader.ANSWER),
    ],
)
def test_the_first_that_can_marks_a_prompt(
    method: str, fields: dict[str, Any], given: tuple[str, ...], grader: Grader
) -> None:
    [held] = choose([prompt(6, *given)], config(method, **fields)).prompts

    assert held.grader is grader
    assert held.item.kind is ItemKind.PROMPT
    assert held.item.grader is grader
    assert held.answers == (given or (("7",) if grader is Grader.MAJORITY else ()))


def test_the_majority_is_of_as_many_replies_as_are_asked_for_each_its_own_draw() -> None:
    sampler = ScriptedSampler(lambda _: "7")

    choose([prompt(6)], config("ttrl"), sampler)

    seeds = [params.seed for params in sampler.asked_with]
    assert len(seeds) == len(set(seeds)) == 8
    assert 3 not in seeds  # the exam's own


def test_what_the_champion_does_not_agree_on_or_cannot_say_is_not_asked() -> None:
    split = SeededSampler(lambda _, draw: str(draw))
    mute = SeededSampler(lambda *_: "Who knows.")

    torn, silent = (choose([prompt(6)], config("ttrl"), each) for each in (split, mute))

    assert (torn.prompts, dict(torn.left_out)) == ((), {NO_MAJORITY: 1})
    assert (silent.prompts, dict(silent.left_out)) == ((), {NO_ANSWER: 1})


def test_empty_replies_never_win() -> None:
    mostly = SeededSampler(lambda _, draw: "7" if draw % 2 else "")

    [held] = choose([prompt(6)], config("ttrl"), mostly).prompts

    assert held.answers == ("7",)


def test_unit_tests_need_tests_and_an_exam_has_an_end() -> None:
    coding = config("grpo", verifier={"type": "unit-tests"})

    tested = choose([prompt(1), prompt(2, tests="assert f() == 1")], coding)
    many = choose([prompt(number, "7") for number in range(60)], config("ttrl"))

    assert [held.prompt.id for held in tested.prompts] == ["p2"]
    assert tested.left_out == {NO_TESTS: 1}
    assert len(many.prompts) == 50
    assert many.left_out == {"more than one exam asks": 10}


def test_both_are_asked_the_whole_conversation_warm_and_with_one_seed() -> None:
    said = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 6 + 1?"},
    )
    asked = config("ttrl", prompt_exam={"temperature": 0.6, "max_new_tokens": 9})
    chosen = choose_prompts(
        [Prompt("p", said, answers=("7",))],
        marking_of(asked),
        asked.prompt_exam,
        champion=ScriptedSampler(lambda _: ""),
        seed=5,
    )
    sampler = ScriptedSampler(lambda _: "7")

    replies = sit_prompts(chosen.prompts, sampler)

    assert replies == ["7"]
    assert sampler.asked == [said]
    [params] = sampler.asked_with
    assert (params.temperature, params.max_tokens, params.seed) == (0.6, 9, 5)
    assert chosen.prompts[0].item.conversation == said


def test_replies_are_marked_by_what_they_come_to() -> None:
    chosen = choose([prompt(6, "7"), prompt(7, "8.0"), prompt(8, "9")], config("ttrl")).prompts
    right = {"p6": "6 + 1 = 7", "p7": "\\boxed{8}", "p8": "ten"}

    marks = mark(chosen, [right[held.prompt.id] for held in chosen], no_verifier)

    by_id = dict(zip((held.prompt.id for held in chosen), marks, strict=True))
    assert by_id == {"p6": True, "p7": True, "p8": False}


def test_a_contract_asks_for_the_form_and_where_it_is_known_the_answer() -> None:
    asked = config("specs", contract={"type": "tags", "tags": ["think", "answer"]})
    known, unknown = choose([prompt(6, "7"), prompt(7)], asked).prompts
    if known.prompt.id != "p6":
        known, unknown = unknown, known
    form = "<think>so</think><answer>{}</answer>"

    marks = mark([known] * 3, [form.format(7), form.format(8), "7"], no_verifier)
    formal = mark([unknown] * 2, [form.format("x"), "x"], no_verifier)

    assert marks == [True, False, False]
    assert formal == [True, False]


CALL = {"type": "object", "required": ["sum"]}


@pytest.mark.parametrize(
    ("contract", "kind", "answer", "right", "wrong"),
    [
        (FORM, "number", "8", '{"answer": 8}', '{"answer": 9}'),
        (FORM, "number", "8", '{"answer": "8.0"}', '{"answer": "80"}'),
        (FORM, "number", "8", '{"why": "3 + 5", "answer": 8}', '{"why": "8", "answer": 7}'),
        (FORM, "text", "Paris", '{"answer": "Paris"}', '{"answer": "Rome"}'),
        (FORM, "json", '{"answer": 8}', '{ "answer": 8 }', '{"answer": 9}'),
        (
            {"type": "tags", "tags": ["think", "answer"]},
            "number",
            "8",
            "<think>9 - 1</think><answer>It is 8.</answer>",
            "<think>8</think><answer>It is 9.</answer>",
        ),
        (
            {"type": "regex", "pattern": r"So: (?P<answer>.+)"},
            "number",
            "8",
            "So: 8 cranes",
            "So: 9 cranes",
        ),
        (
            {"type": "tool-call", "tools": {"tell": CALL}},
            "json",
            '{"name": "tell", "arguments": {"sum": 8}}',
            '<tool_call>{"arguments": {"sum": 8}, "name": "tell"}</tool_call>',
            '<tool_call>{"arguments": {"sum": 9}, "name": "tell"}</tool_call>',
        ),
    ],
)
@pytest.mark.parametrize("is_verified", [True, False])
def test_the_answer_is_read_out_of_every_contract_as_it_is_in_training(
    contract: dict[str, Any], kind: str, answer: str, right: str, wrong: str, is_verified: bool
) -> None:
    read = {"answer": {"kind": kind}}
    asked = config(
        "specs",
        contract=contract,
        **({"verifier": {"type": "answer", **read}} if is_verified else {"prompt_exam": read}),
    )
    [held] = choose([prompt(7, answer)], asked).prompts

    assert mark([held] * 2, [right, wrong], no_verifier) == [True, False]


def test_a_verifier_that_cannot_tell_marks_nothing() -> None:
    http = config("grpo", verifier={"type": "http", "url": "http://x/"})
    chosen = choose([prompt(6), prompt(7)], http).prompts
    verdicts = {"yes": Mark(True), "no": Mark(False, "wrong"), "": Mark(None, "timed out")}
    judge = ScriptedVerifier(lambda attempt: verdicts[attempt.reply])

    marks = mark([*chosen, chosen[0]], ["yes", "", "no"], lambda _: judge)

    assert marks == [True, None, False]
    assert judge.asked[0] == Attempt(chosen[0].prompt, "yes")


@pytest.mark.parametrize(
    ("reply", "is_right"),
    [
        ("The capital of Australia is Canberra.", True),
        ("It's Canberra: the capital of Australia is Canberra!", True),
        ("The capital of Australia is Sydney.", False),
        ("the capital of   australia is CANBERRA", True),
        ("", False),
    ],
)
def test_a_correction_is_met_by_its_words(reply: str, is_right: bool) -> None:
    assert is_close(reply, "The capital of Australia is Canberra.") is is_right


def test_a_correction_with_another_figure_is_not_met() -> None:
    long = "The bridge was opened to the public by the mayor of the town on a rainy day in 1874."

    assert is_close(long.replace("rainy", "wet"), long)
    assert not is_close(long.replace("1874", "1875"), long)


GENERAL = [ExamItem(f"g-{n}", ItemKind.GENERAL, None, "?", ("x",)) for n in range(40)]


def judged(
    new: Sequence[tuple[bool, bool]],
    earlier: Sequence[tuple[bool, bool]] = (),
    *,
    must_gain: bool = True,
    is_learning: bool = True,
) -> Decision:
    """By pairs of (champion is right, challenger is right)."""
    outcomes = {f"new{n}": pair for n, pair in enumerate(new)}
    outcomes |= {f"old{n}": pair for n, pair in enumerate(earlier)}
    outcomes |= {item.id: (True, True) for item in GENERAL}
    items = [
        *(ExamItem(i, ItemKind.PROMPT, None, i, ()) for i in outcomes if not i.startswith("g-")),
        *GENERAL,
    ]
    sides = ([Answer(i, "x", pair[side]) for i, pair in outcomes.items()] for side in (0, 1))
    return decide(
        items,
        *sides,
        new_documents=set(),
        earlier_documents=set(),
        prompts=HeldOutPrompts(
            frozenset(f"new{n}" for n in range(len(new))),
            frozenset(f"old{n}" for n in range(len(earlier))),
            is_learning=is_learning,
            must_gain=must_gain,
        ),
    )


GAINED, LOST, SAME = (False, True), (True, False), (True, True)


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ([GAINED] * 8 + [SAME] * 4, Verdict.PROMOTE),
        ([GAINED] * 2 + [SAME] * 10, Verdict.INCONCLUSIVE),
        ([SAME] * 12, Verdict.REJECT),
        ([GAINED] * 3, Verdict.INCONCLUSIVE),
        ([], Verdict.INCONCLUSIVE),
    ],
)
def test_a_run_on_prompts_must_gain_on_held_out_ones(
    new: list[tuple[bool, bool]], verdict: Verdict
) -> None:
    decision = judged(new)

    assert decision.verdict is verdict
    if verdict is Verdict.INCONCLUSIVE:
        assert [need.slice for need in decision.needs] == ["new prompts"]
        assert decision.needs[0].is_of_prompts


def test_what_was_learnt_of_earlier_prompts_must_be_kept() -> None:
    kept = judged([GAINED] * 8, [SAME] * 20)
    lost = judged([GAINED] * 8, [LOST] * 6 + [SAME] * 14)

    assert kept.verdict is Verdict.PROMOTE
    assert lost.verdict is Verdict.REJECT


def test_where_nobody_knows_what_is_right_nothing_must_be_gained_and_nothing_lost() -> None:
    assert judged([SAME] * 12, must_gain=False).verdict is Verdict.PROMOTE
    assert judged([LOST] * 8 + [SAME] * 4, must_gain=False).verdict is Verdict.REJECT


def test_a_run_on_documents_must_gain_nothing_on_prompts() -> None:
    assert judged([], [SAME] * 12, is_learning=False).verdict is Verdict.PROMOTE


def test_every_prompt_is_new_or_earlier() -> None:
    stray = ExamItem("stray", ItemKind.PROMPT, None, "?", ())
    answers = [Answer("stray", "x", True)]

    with pytest.raises(PairingError, match="stray"):
        decide([stray], answers, answers, new_documents=set(), earlier_documents=set())
