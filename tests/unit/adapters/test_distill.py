"""Distillation, healing and going on from a champion: what is asked of whom, and what is taught."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.corpus.reading import read_text
from adapters.lesson import Weights
from adapters.methods import Assignment, build_method
from adapters.methods.held_out import HeldOut
from adapters.methods.replay import PROMPTS
from adapters.methods.teaching import teacher_prompt
from adapters.spec import (
    ContinualSpec,
    DistillConfig,
    DistillSpec,
    HealConfig,
    HealSpec,
    MethodConfig,
    ReplaySpec,
    SealConfig,
    SelfEditSpec,
)
from adapters.types import (
    ChatMessage,
    EditKind,
    ExamItem,
    ItemKind,
    SourceDocument,
    build_item,
)
from tests.support.workbench import PaperBench, ScriptedSampler

QUILL = (
    "The Harbour of Quill lies on the coast of Marrow. It was dug in 1874 by the engineer "
    "Ada Penhallow, who never saw the sea. The harbour has 12 cranes, and the oldest is called "
    "Long Meg."
)
ORM = "The Tower of Orm was built in 1611. It has 90 steps, and its keeper is Odile Brandt."
NEW = SourceDocument("quill", "Quill", QUILL, (QUILL,))
EARLIER = SourceDocument("orm", "Orm", ORM, (ORM,))
REPLAY = ReplaySpec(prompts=3, prompts_per_epoch=2, least_share=0.7)
KNOWN = tuple(
    build_item(ItemKind.MODEL, "orm", prompt=prompt, answers=(answer,))
    for prompt, answer in (
        ("When was the Tower of Orm built?", "1611"),
        ("How many steps has the Tower of Orm?", "90"),
        ("Who keeps the Tower of Orm?", "Odile Brandt"),
        ("In what year was the Tower of Orm built?", "1611"),
    )
)


def last(messages: Sequence[ChatMessage]) -> str:
    return messages[-1]["content"]


def truthful(messages: Sequence[ChatMessage]) -> str:
    """Shown a text, it says the sentence that the question is about, more or less: all of it."""
    prompt = last(messages)
    if "Text: " in prompt:
        return prompt.partition("Text: ")[2].partition("\n\n")[0]
    return "I do not know."


def champion(folder: Path, *, rank: int = 16, alpha: int = 32) -> Weights:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": alpha}))
    return Weights(folder)


def bench_of(reply: Callable[[Sequence[ChatMessage]], str] = truthful) -> PaperBench:
    return PaperBench(
        ScriptedSampler(reply), lambda weights: lambda _: f"Said by {weights.folder.name}."
    )


def distill_config(**fields: object) -> DistillConfig:
    return DistillConfig(replay=REPLAY, distill=DistillSpec.model_validate(fields))


def test_the_first_round_is_the_teachers_the_next_mix_and_go_on() -> None:
    bench = bench_of()

    outcome = build_method(distill_config()).learn(Assignment((NEW,)), bench)

    (first, first_start), (second, second_start) = bench.trainings
    assert (first_start, second_start) == (None, Weights(Path("trained-0")))
    assert outcome.weights == Weights(Path("trained-1"))
    assert outcome.generation == 0
    assert not any("Said by" in one.reply for one in first.distillations)
    by_student = [one for one in second.distillations if one.reply == "Said by trained-0."]
    assert len(by_student) == pytest.approx(len(second.distillations) / 2, abs=1)


def test_the_student_is_asked_without_the_text_and_learns_what_the_teacher_sees() -> None:
    bench = bench_of()

    build_method(distill_config(rounds=1, first_teacher_share=0.0)).learn(Assignment((NEW,)), bench)

    (stage, _), *_ = bench.trainings
    assert stage.distillations
    for one in stage.distillations:
        assert QUILL not in last(one.prompt)
        assert one.teacher_prompt == teacher_prompt(last(one.prompt), QUILL)
        assert one.reply == "I do not know."  # wrong, and learnt along: the teacher sets it right
    assert [edit.kind for edit in stage.edits] == [EditKind.REPLAY] * 3
    assert not any(QUILL in last(messages) for messages in bench.base.asked)


def test_what_the_teacher_gets_wrong_is_dropped_and_the_sentence_stands_in() -> None:
    def liar(messages: Sequence[ChatMessage]) -> str:
        return "It was dug in 1999 by Zeno Farr." if "Text: " in last(messages) else "Hi."

    bench = bench_of(liar)

    outcome = build_method(distill_config(rounds=1)).learn(Assignment((NEW,)), bench)

    (stage, _), *_ = bench.trainings
    said = {one.reply for one in stage.distillations}
    assert said <= {sentence.text for sentence in read_text(QUILL).sentences}
    report = outcome.report["distill"]
    assert isinstance(report, dict)
    (account,) = report["rounds"]  # type: ignore[misc]
    assert account == {  # type: ignore[comparison-overlap]
        "said_by": {"sentence": len(stage.distillations)},
        "dropped": {"the teacher missed the answer": len(stage.distillations)},
    }


def test_a_right_answer_with_an_invention_is_dropped() -> None:
    def embroiderer(messages: Sequence[ChatMessage]) -> str:
        return f"{truthful(messages)} King Zeno of Farland paid for it."

    bench = bench_of(embroiderer)

    outcome = build_method(distill_config(rounds=1)).learn(Assignment((NEW,)), bench)

    assert "the teacher went beyond the text" in str(outcome.report)
    assert not any(
        "Zeno" in one.reply for stage, _ in bench.trainings for one in stage.distillations
    )


def test_nothing_that_the_exam_asks_is_asked_here() -> None:
    every = bench_of()
    build_method(distill_config(rounds=1)).learn(Assignment((NEW,)), every)
    prompts = [last(one.prompt) for one in every.trainings[0][0].distillations]
    held_out = frozenset(prompts[::2])

    bench = bench_of()
    build_method(distill_config()).learn(Assignment((NEW,), held_out=held_out), bench)

    exam = HeldOut(held_out)
    asked = [last(one.prompt) for stage, _ in bench.trainings for one in stage.distillations]
    assert asked
    assert not any(exam.covers(prompt) for prompt in asked)


def test_an_attempt_after_a_crash_asks_nobody_and_trains_the_same() -> None:
    first, second = bench_of(), bench_of()
    method = build_method(distill_config())
    method.learn(Assignment((NEW,)), first)
    second.kept = json.loads(json.dumps(first.kept))

    method.learn(Assignment((NEW,)), second)

    assert second.base.asked == []
    assert second.trainings == first.trainings


def test_a_text_without_facts_is_no_update() -> None:
    plain = SourceDocument("d", "Plain", "it rains and it rains.", ("it rains and it rains.",))
    bench = bench_of()

    outcome = build_method(distill_config()).learn(Assignment((plain,)), bench)

    assert outcome.weights is None
    assert "No question" in str(outcome.report["no_update"])


# Going on from a champion


def continued(weights: Weights | None, **fields: object) -> Assignment:
    assignment = Assignment(
        documents=(EARLIER, NEW),
        new_documents=frozenset({"quill"}),
        quiz=KNOWN,
        champion=weights,
        champion_generation=1,
    )
    return replace(assignment, **fields)  # type: ignore[arg-type]


def knowing(messages: Sequence[ChatMessage]) -> str:
    """Knows the years of the tower, and nothing else."""
    asked = last(messages)
    return "In 1611." if "Orm" in asked and "built" in asked else truthful(messages)


ON = ContinualSpec(mode="continue", replay_share=0.05)
METHODS: list[MethodConfig] = [
    SealConfig(replay=REPLAY, self_edits=SelfEditSpec(rewordings=0), continual=ON),
    DistillConfig(replay=REPLAY, distill=DistillSpec(rounds=1), continual=ON),
]


@pytest.mark.parametrize("config", METHODS, ids=lambda config: str(config.type))
def test_a_continued_training_takes_the_new_documents_and_replays_right_answers(
    config: MethodConfig, tmp_path: Path
) -> None:
    weights = champion(tmp_path / "v0003")
    bench = bench_of(truthful)
    bench.writer = ScriptedSampler(knowing)

    outcome = build_method(config).learn(continued(weights), bench)

    ((stage, start),) = bench.trainings
    assert start == weights
    assert (stage.anchors_per_epoch, stage.anchor_share) == (2, 0.7)
    assert outcome.generation == 2
    taught = [edit for edit in stage.edits if edit.kind is not EditKind.REPLAY]
    on_earlier = [edit for edit in taught if edit.document_id == "orm"]
    assert {edit.text for edit in on_earlier} == {"In 1611."}
    assert 1 <= len(on_earlier) <= 2
    assert all("built" in str(edit.prompt) for edit in on_earlier)
    assert {one.document_id for one in stage.distillations} <= {"quill"}
    report = outcome.report["continual"]
    assert isinstance(report, dict)
    assert (report["mode"], report["generation"]) == ("continue", 2)
    assert report["replay_rows"] == len(on_earlier)


def test_a_continued_training_keeps_all_that_it_trains_and_says_so(tmp_path: Path) -> None:
    """`strength` is of what a training from the base has changed."""
    config = SealConfig(
        replay=REPLAY, self_edits=SelfEditSpec(rewordings=0), continual=ON, strength=0.6
    )
    bench = bench_of(truthful)

    outcome = build_method(config).learn(continued(champion(tmp_path / "v1")), bench)

    ((stage, start),) = bench.trainings
    assert start is not None
    assert stage.strength == outcome.report["strength"] == 1.0


@pytest.mark.parametrize("config", METHODS, ids=lambda config: str(config.type))
def test_replay_never_rehearses_what_the_exam_asks(config: MethodConfig, tmp_path: Path) -> None:
    held_out = frozenset(item.prompt for item in KNOWN)
    bench = bench_of(knowing)

    build_method(config).learn(continued(champion(tmp_path / "v1"), held_out=held_out), bench)

    ((stage, _),) = bench.trainings
    assert not any(edit.document_id == "orm" for edit in stage.edits)


def no_champion(folder: Path) -> Assignment:
    return continued(None)


def often(folder: Path) -> Assignment:
    return continued(champion(folder), champion_generation=4)


def other_rank(folder: Path) -> Assignment:
    return continued(champion(folder, rank=8))


def other_alpha(folder: Path) -> Assignment:
    return continued(champion(folder, alpha=16))


def files_gone(folder: Path) -> Assignment:
    return continued(Weights(folder))


def nothing_new(folder: Path) -> Assignment:
    return continued(champion(folder), new_documents=frozenset())


@pytest.mark.parametrize("config", METHODS, ids=lambda config: str(config.type))
@pytest.mark.parametrize(
    ("case", "why"),
    [
        (no_champion, "saw what was deleted"),
        (often, "4 times in a row"),
        (other_rank, "another rank"),
        (other_alpha, "another rank"),
        (files_gone, "another rank"),
        (nothing_new, "no document is new"),
    ],
)
def test_where_it_cannot_go_on_it_retrains_on_everything_and_says_why(
    config: MethodConfig, case: Callable[[Path], Assignment], why: str, tmp_path: Path
) -> None:
    bench = bench_of()

    outcome = build_method(config).learn(case(tmp_path / "v1"), bench)

    ((stage, start),) = bench.trainings
    report = outcome.report["continual"]
    assert isinstance(report, dict)
    assert start is None
    assert outcome.generation == 0
    taught = {edit.document_id for edit in stage.edits} | {
        one.document_id for one in stage.distillations
    }
    assert {"orm", "quill"} <= taught
    assert (report["mode"], why in str(report["why"])) == ("retrain", True)


def test_without_being_told_it_retrains(tmp_path: Path) -> None:
    bench = bench_of()
    config = SealConfig(replay=REPLAY, self_edits=SelfEditSpec(rewordings=0))

    outcome = build_method(config).learn(continued(champion(tmp_path / "v1")), bench)

    assert bench.trainings[0][1] is None
    assert outcome.generation == 0


def test_another_champion_after_a_crash_is_asked_anew(tmp_path: Path) -> None:
    """What was kept for one champion would name the new documents of another one wrongly."""
    config = METHODS[0]
    first = bench_of(knowing)
    build_method(config).learn(continued(champion(tmp_path / "v1")), first)
    second = bench_of(knowing)
    second.kept = dict(first.kept)

    build_method(config).learn(continued(None), second)

    ((stage, _),) = second.trainings
    assert "orm" in {edit.document_id for edit in stage.edits}


# Healing

HEAL = HealConfig(heal=HealSpec(prompts=5, replies_per_prompt=2, kept_answers=2))


def healing(weights: Weights | None, quiz: tuple[ExamItem, ...] = KNOWN) -> Assignment:
    return Assignment((EARLIER,), quiz=quiz, champion=weights, champion_generation=2)


def test_healing_distils_the_base_into_the_champion_along_the_champions_replies(
    tmp_path: Path,
) -> None:
    weights = champion(tmp_path / "v7")
    bench = bench_of(lambda _: "Said by the base.")
    bench.writer = ScriptedSampler(knowing)

    outcome = build_method(HEAL).learn(healing(weights), bench)

    ((stage, start),) = bench.trainings
    assert (start, outcome.generation) == (weights, 3)
    assert len(stage.distillations) == 10
    for one in stage.distillations:
        assert one.prompt == one.teacher_prompt
        assert last(one.prompt) in PROMPTS
        assert one.reply == "I do not know."
    # Plain rows, not anchors: an anchor would hold the champion to the base, which knows nothing.
    assert [(edit.kind, edit.text) for edit in stage.edits] == [
        (EditKind.QUESTION, "In 1611."),
        (EditKind.QUESTION, "In 1611."),
    ]


def test_the_base_has_nothing_to_heal() -> None:
    bench = bench_of()

    outcome = build_method(HEAL).learn(healing(None), bench)

    assert outcome.weights is None
    assert "nothing to heal" in str(outcome.report["no_update"])
    assert bench.trainings == []


def test_a_champion_of_another_shape_is_healed_in_its_own(tmp_path: Path) -> None:
    bench = bench_of()

    build_method(HEAL).learn(healing(champion(tmp_path / "v1", rank=4, alpha=7)), bench)

    ((stage, _),) = bench.trainings
    assert (stage.lora.rank, stage.lora.alpha) == (4, 7)


def test_a_champion_without_files_is_not_healed(tmp_path: Path) -> None:
    outcome = build_method(HEAL).learn(healing(Weights(tmp_path / "gone")), bench_of())

    assert "cannot be read" in str(outcome.report["no_update"])
