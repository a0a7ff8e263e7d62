"""Quiz and lesson plan: grounded in the text, split for good, and never at a loss for a poor model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from adapters.evaluation.exam import sit_exam
from adapters.evaluation.general import load_general_suite
from adapters.evaluation.quiz import build_exam_items
from adapters.methods import build_method
from adapters.methods.held_out import HeldOut
from adapters.methods.replay import PROMPTS, replay_edits
from adapters.rewards.answers import normalise
from adapters.spec import ExamSpec, ReplaySpec, SealConfig, SelfEditSpec
from adapters.types import (
    ChatMessage,
    EditKind,
    ItemKind,
    ProgressCallback,
    SamplingParams,
    SourceDocument,
    build_item,
)

TEXT = (
    "The Harbour of Quill lies on the coast of Marrow. It was dug in 1874 by the engineer "
    "Ada Penhallow, who never saw the sea. The harbour has 12 cranes, and the oldest is called "
    "Long Meg. On 3 May 1902 a whale blocked it for 9 days. The present master is Otto Brane."
)
DOCUMENT = SourceDocument("doc", "Quill", TEXT, (TEXT,))
CONFIG = SealConfig(
    replay=ReplaySpec(prompts=4, prompts_per_epoch=2), self_edits=SelfEditSpec(rewordings=2)
)


@dataclass
class ScriptedSampler:
    """Answers the last user message by a function, and remembers what it was asked."""

    reply: Callable[[str], str]
    asked: list[str] = field(default_factory=list)

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        prompts = [conversation[-1]["content"] for conversation in conversations]
        self.asked += prompts
        return [self.reply(prompt) for prompt in prompts]


def good_writer(prompt: str) -> str:
    """Turns one question round and answers from the text; has nothing else to say."""
    if (
        prompt == "Ask this in better English: The Harbour of Quill was dug in what year by the "
        "engineer Ada Penhallow?"
    ):
        return "When did Ada Penhallow dig the Harbour of Quill?"
    if prompt.endswith("Question: When did Ada Penhallow dig the Harbour of Quill?"):
        return "The Harbour of Quill was dug in 1874."
    return "Hmm."


POOR_WRITERS = {
    "silent": lambda _: "",
    "no words": lambda _: "???",
    "noise": lambda _: "Zx qq 77 \n\0 \u2603",
    "parrot": lambda prompt: prompt,
    "copies the examples": lambda _: "Who opened the Golden Crumb?",
}


def test_the_exam_has_the_models_questions_and_the_rules() -> None:
    exam, train = build_exam_items(
        DOCUMENT,
        sampler=ScriptedSampler(good_writer),
        exam=ExamSpec(exam_share=1.0),
        quiz=CONFIG.quiz,
    )

    assert {item.kind for item in (*exam, *train)} == {ItemKind.MODEL, ItemKind.CLOZE}
    [written] = [item for item in (*exam, *train) if item.kind is ItemKind.MODEL]
    assert written.prompt == "When did Ada Penhallow dig the Harbour of Quill?"
    assert written.answers == ("1874",)


def test_of_one_fact_at_most_one_item_is_held_out() -> None:
    exam, train = build_exam_items(
        DOCUMENT,
        sampler=ScriptedSampler(good_writer),
        exam=ExamSpec(exam_share=1.0),
        quiz=CONFIG.quiz,
    )

    asked = [item.answers for item in exam]

    assert len(asked) == len(set(asked))
    assert [item.answers for item in train] == [("1874",)]


def test_the_split_is_by_content_and_leaves_nothing_out_or_twice() -> None:
    sampler = ScriptedSampler(good_writer)
    exam, train = build_exam_items(DOCUMENT, sampler=sampler, exam=CONFIG.exam, quiz=CONFIG.quiz)
    again, _ = build_exam_items(DOCUMENT, sampler=sampler, exam=CONFIG.exam, quiz=CONFIG.quiz)

    prompts = [item.prompt for item in (*exam, *train)]

    assert exam == again
    assert len(prompts) == len(set(prompts))
    assert len(exam) > len(train) > 0


@pytest.mark.parametrize("writer", POOR_WRITERS.values(), ids=POOR_WRITERS.keys())
def test_rules_alone_carry_quiz_and_plan_when_the_model_writes_nonsense(
    writer: Callable[[str], str],
) -> None:
    sampler = ScriptedSampler(writer)

    exam, _ = build_exam_items(DOCUMENT, sampler=sampler, exam=CONFIG.exam, quiz=CONFIG.quiz)
    plan = build_method(CONFIG).plan([DOCUMENT], sampler=sampler)

    assert {item.kind for item in exam} == {ItemKind.CLOZE}
    written = [e for e in plan.edits if e.written_by == "model" and e.kind is not EditKind.REPLAY]
    assert written == []
    assert {EditKind.PASSAGE, EditKind.SENTENCE, EditKind.CLOZE, EditKind.QUESTION} <= {
        edit.kind for edit in plan.edits
    }


def test_the_model_question_that_passes_is_taught_with_its_own_answer() -> None:
    plan = build_method(CONFIG).plan([DOCUMENT], sampler=ScriptedSampler(good_writer))

    [edit] = [e for e in plan.edits if e.written_by == "model" and e.kind is EditKind.QUESTION]

    assert edit.prompt == "When did Ada Penhallow dig the Harbour of Quill?"
    assert edit.text == "The Harbour of Quill was dug in 1874."


def test_no_prompt_of_the_exam_is_ever_taught() -> None:
    sampler = ScriptedSampler(good_writer)
    config = CONFIG.model_copy(update={"exam": ExamSpec(exam_share=1.0)})
    exam, _ = build_exam_items(DOCUMENT, sampler=sampler, exam=config.exam, quiz=config.quiz)

    plan = build_method(config).plan(
        [DOCUMENT], sampler=sampler, held_out=frozenset(item.prompt for item in exam)
    )

    asked = {normalise(item.prompt) for item in exam}
    assert not asked & {normalise(edit.prompt) for edit in plan.edits if edit.prompt}
    assert plan.report["dropped"]["asked in the exam"] > 0


def test_held_out_sees_through_instruction_topic_and_a_changed_word() -> None:
    held_out = HeldOut(
        ["Complete: The old Harbour of Quill on the coast was first dug out by hand in"]
    )

    assert held_out.covers("complete: old harbour of Quill, on coast, was first dug out by hand in")
    assert held_out.covers(
        "About Quill: The old Harbour of Quill on the coast was then dug out by hand in"
    )
    assert not held_out.covers("When was the Harbour of Quill dug?")


def test_items_left_to_training_are_taught_and_held_out_ones_are_not() -> None:
    item = build_item(ItemKind.MODEL, "doc", prompt="Who is the master?", answers=("Otto Brane",))
    method, sampler = build_method(CONFIG), ScriptedSampler(lambda _: "")

    taught = method.plan([DOCUMENT], sampler=sampler, quiz=[item]).edits
    withheld = method.plan(
        [DOCUMENT], sampler=sampler, quiz=[item], held_out=frozenset({item.prompt})
    ).edits

    assert ("Who is the master?", "Otto Brane.") in {(e.prompt, e.text) for e in taught}
    assert "Who is the master?" not in {e.prompt for e in withheld}


def test_the_base_answers_the_replay_and_unfinished_sentences_are_cut() -> None:
    served = ScriptedSampler(lambda _: "")
    base = ScriptedSampler(lambda _: "It is Rome. It has been so for a long")

    plan = build_method(CONFIG).plan([DOCUMENT], sampler=served, base_sampler=base)

    replay = [edit for edit in plan.edits if edit.kind is EditKind.REPLAY]
    assert [edit.text for edit in replay] == ["It is Rome."] * 4
    assert set(base.asked) == set(PROMPTS[:4])


def test_replay_never_asks_what_an_exam_asks() -> None:
    exam = HeldOut([f"About Italy: {PROMPTS[0].upper()}"])
    edits = replay_edits(ScriptedSampler(lambda _: "Yes."), ReplaySpec(prompts=999), exam)
    suite = HeldOut(item.prompt for item in load_general_suite())

    assert [edit.prompt for edit in edits] == list(PROMPTS[1:])
    assert not [prompt for prompt in PROMPTS if suite.covers(prompt)]


@pytest.mark.parametrize("text", ["", "   ", "123", "no capitals and no numbers here", "# Title"])
def test_a_text_without_facts_gives_no_exam_and_no_crash(text: str) -> None:
    document = SourceDocument("doc", "t", text, (text,) if text else ())

    exam, train = build_exam_items(document, sampler=None, exam=CONFIG.exam, quiz=CONFIG.quiz)
    plan = build_method(CONFIG).plan([document], sampler=ScriptedSampler(good_writer))

    assert exam == train == []
    assert all(edit.text.strip() for edit in plan.edits)


def test_answers_are_graded_in_the_order_of_the_items() -> None:
    items = [
        build_item(ItemKind.CLOZE, "doc", prompt="Who?", answers=("Ada",)),
        build_item(ItemKind.CLOZE, "doc", prompt="Where?", answers=("Orm",)),
    ]

    answers = sit_exam(items, ScriptedSampler(lambda p: "It was Ada." if p == "Who?" else "No."))

    assert [(a.item_id, a.is_correct) for a in answers] == [
        (items[0].id, True),
        (items[1].id, False),
    ]
