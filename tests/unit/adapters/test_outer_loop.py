"""The outer loop: of several edits the one that teaches most, measured, or none with the reason."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from adapters.lesson import Weights
from adapters.methods import Assignment, Outcome, build_method
from adapters.methods.edit_prompts import edit_prompt
from adapters.methods.outer_loop import Scores
from adapters.sampling import SamplingError
from adapters.spec import EditPrompt, OuterLoopSpec, ReplaySpec, SealConfig, SelfEditSpec
from adapters.types import (
    ChatMessage,
    EditKind,
    ExamItem,
    ItemKind,
    SourceDocument,
    build_item,
)
from tests.support.workbench import PaperBench, ScriptedSampler

TEXT = (
    "The Harbour of Quill was dug in 1874 by Ada Penhallow. It has 12 cranes. The oldest crane is "
    "called Long Meg. The master is Otto Brane."
)
DOCUMENT = SourceDocument("doc", "Quill", TEXT, (TEXT,))
QUIZ = tuple(
    build_item(ItemKind.MODEL, "doc", prompt=prompt, answers=(answer,))
    for prompt, answer in (
        ("When was the Harbour of Quill dug?", "1874"),
        ("How many cranes does the harbour have?", "12"),
        ("Which name has the oldest of the cranes?", "Long Meg"),
    )
)
EXAM_PROMPT = "Who is the master of the harbour?"
ASSIGNMENT = Assignment((DOCUMENT,), frozenset({"doc"}), (), frozenset({EXAM_PROMPT}), QUIZ)
THREE = (EditPrompt.IMPLICATIONS, EditPrompt.REWRITE, EditPrompt.SELF_QA)
CONFIG = SealConfig(
    replay=ReplaySpec(prompts=0),
    self_edits=SelfEditSpec(rewordings=0),
    outer=OuterLoopSpec(is_enabled=True, prompts=THREE, candidates=3),
    strength=0.6,
)

ONE_FACT = "The Harbour of Quill was dug in 1874."
TWO_FACTS = "The Harbour of Quill was dug in 1874 and has 12 cranes."
A_PAIR = "Question 1: By whom was the harbour dug?\nAnswer: Ada Penhallow"
WRITTEN = {
    EditPrompt.IMPLICATIONS: ONE_FACT,
    EditPrompt.REWRITE: f"{TWO_FACTS}\n---\nIt was dug by Napoleon.",
    EditPrompt.SELF_QA: A_PAIR,
}


def editor(written: dict[EditPrompt, str]) -> ScriptedSampler:
    """Writes what it is told to for each kind of prompt."""
    replies = {
        edit_prompt(kind, title="Quill", passage=TEXT): reply for kind, reply in written.items()
    }
    return ScriptedSampler(lambda said: replies[said[-1]["content"]])


def base_model(said: Sequence[ChatMessage]) -> str:
    """Agrees with every statement, knows who dug the harbour from the text, and nothing else."""
    prompt = said[-1]["content"]
    if "Answer only yes or no" in prompt:
        return "Yes."
    return "Ada Penhallow" if "Question: By whom" in prompt else "I do not know."


class Bench(PaperBench):
    """Trained models know what the statements of their lesson say; what they are asked is kept."""

    def __init__(self, written: dict[EditPrompt, str] | None = None, **fields: Any) -> None:
        super().__init__(ScriptedSampler(base_model), self._answers, **fields)
        self.editor = editor(WRITTEN if written is None else written)
        self.asked_of_trials: list[str] = []
        self.served = 0

    def _answers(self, weights: Weights) -> Callable[[Sequence[ChatMessage]], str]:
        stage = self.trials[int(weights.folder.name.partition("-")[2])]
        known = " ".join(e.text for e in stage.edits if e.kind is not EditKind.PASSAGE)

        def reply(said: Sequence[ChatMessage]) -> str:
            self.asked_of_trials.append(said[-1]["content"])
            return known

        return reply

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[ScriptedSampler]]:
        self.served += 1
        with super().serving(weights) as samplers:
            yield samplers


def learn(
    bench: PaperBench, config: SealConfig = CONFIG, assignment: Assignment = ASSIGNMENT
) -> Outcome:
    return build_method(config).learn(assignment, bench)


def with_outer(**fields: Any) -> SealConfig:
    return CONFIG.model_copy(update={"outer": CONFIG.outer.model_copy(update=fields)})


def the_row(outcome: Outcome) -> dict[str, Any]:
    """What the report says of the only document."""
    report = cast(dict[str, Any], outcome.report["outer_loop"])
    [row] = report["documents"]
    return cast(dict[str, Any], row)


def free_texts(bench: PaperBench) -> set[str]:
    """The statements in the last lesson that the editor wrote."""
    stage, _ = bench.trainings[-1]
    kinds = (EditKind.IMPLICATION, EditKind.REWRITE)
    return {edit.text for edit in stage.edits if edit.kind in kinds}


def test_the_edit_that_teaches_most_joins_the_lesson_with_all_scores_in_the_report() -> None:
    bench = Bench()

    outcome = learn(bench)

    row = the_row(outcome)
    assert row["base_score"] == 0
    assert [c["score"] for c in row["candidates"]] == [1 / 3, 2 / 3, 0]
    assert [c["prompt"] for c in row["candidates"]] == list(THREE)
    assert (row["kept"], row["questions"]) == (1, 3)
    assert free_texts(bench) == {f"Quill\n{TWO_FACTS}"}
    [accepted] = outcome.accepted
    assert accepted.prompt == edit_prompt(EditPrompt.REWRITE, title="Quill", passage=TEXT)
    assert (accepted.text, accepted.score, accepted.base_score) == (TWO_FACTS, 2 / 3, 0)


def test_what_the_text_does_not_bear_out_is_tried_by_nobody() -> None:
    bench = Bench()

    row = the_row(learn(bench))

    assert not any("Napoleon" in edit.text for trial in bench.trials for edit in trial.edits)
    assert row["candidates"][1]["dropped"] == {"a name that is not in the text": 1}


def test_only_questions_left_to_training_are_asked_and_never_with_the_text() -> None:
    bench = Bench()
    asked = replace(ASSIGNMENT.quiz[0], id="other", prompt=f"About it: {EXAM_PROMPT}")
    foreign = replace(ASSIGNMENT.quiz[0], id="foreign", document_id="another")

    learn(bench, assignment=replace(ASSIGNMENT, quiz=(*QUIZ, asked, foreign)))

    assert set(bench.asked_of_trials) == {item.prompt for item in QUIZ}


def test_a_question_that_a_candidate_teaches_is_not_asked() -> None:
    taught = "Question 1: How many cranes does the harbour have?\nAnswer: 12"
    bench = Bench({**WRITTEN, EditPrompt.SELF_QA: taught})
    bench.base.reply = lambda said: "12" if "Text:" in said[-1]["content"] else "Yes."

    row = the_row(learn(bench, with_outer(min_questions=2)))

    assert row["questions"] == 2
    assert QUIZ[1].prompt not in bench.asked_of_trials


def test_trials_are_short_under_several_seeds_and_all_in_one_training() -> None:
    bench = Bench()

    row = the_row(learn(bench, with_outer(seeds=2, epochs=3)))

    assert [trial.seed for trial in bench.trials] == [0, 1, 0, 1, 0, 1]
    assert {trial.training.epochs for trial in bench.trials} == {3}
    assert {trial.strength for trial in bench.trials} == {0.6}  # scored as the lesson will be kept
    assert [len(candidate["by_seed"]) for candidate in row["candidates"]] == [2, 2, 2]
    assert bench.served == 1
    assert bench.trainings[-1][0].training.epochs == CONFIG.training.epochs


def test_a_trial_learns_the_text_and_its_edit_and_nothing_made_by_rule_of_it() -> None:
    bench = Bench()

    learn(bench)

    first = bench.trials[0]
    assert [edit.text for edit in first.edits] == [f"Quill\n{TEXT}", f"Quill\n{ONE_FACT}"]


@pytest.mark.parametrize("quiz", [(), QUIZ[:2]], ids=["none", "two"])
def test_too_few_questions_are_no_search(quiz: tuple[ExamItem, ...]) -> None:
    bench = Bench()

    outcome = learn(bench, assignment=replace(ASSIGNMENT, quiz=quiz))

    row = the_row(outcome)
    assert row["questions"] == len(quiz)
    assert row["skipped"].startswith(f"{len(quiz)} questions")
    assert bench.editor.asked == []
    assert outcome.weights is not None


POOR = {
    "silent": "",
    "noise": "Zx qq 77 \n\0 \u2603",
    "inventive": "Napoleon built it in 1799.",
    "loops": "cranes " * 50,
}


@pytest.mark.parametrize("reply", POOR.values(), ids=POOR.keys())
def test_a_poor_editor_costs_no_training_and_no_lesson(reply: str) -> None:
    bench = Bench(dict.fromkeys(THREE, reply))

    outcome = learn(bench)

    assert the_row(outcome)["skipped"] == "Nothing that was written is borne out by the text."
    assert bench.trials == []
    assert outcome.accepted == ()
    assert EditKind.PASSAGE in {edit.kind for edit in bench.trainings[-1][0].edits}


def test_when_every_trial_diverges_nothing_is_kept() -> None:
    outcome = learn(bench := Bench(diverging=frozenset(range(3))))

    assert the_row(outcome)["skipped"] == "Every trial diverged."
    assert [c["score"] for c in the_row(outcome)["candidates"]] == [None] * 3
    assert free_texts(bench) == set()


def test_a_trial_that_diverges_loses_to_those_that_do_not() -> None:
    row = the_row(learn(Bench(diverging=frozenset({1}))))

    assert [c["score"] for c in row["candidates"]] == [1 / 3, None, 0]
    assert row["kept"] == 0


def test_of_equals_the_first_is_kept() -> None:
    row = the_row(learn(Bench({**WRITTEN, EditPrompt.REWRITE: ONE_FACT})))

    assert row["kept"] == 0


def test_what_teaches_no_more_than_the_base_knows_is_not_kept() -> None:
    bench = Bench()
    bench.base.reply = lambda said: base_model(said) + " 1874 and 12."

    outcome = learn(bench)

    row = the_row(outcome)
    assert row["base_score"] == 2 / 3 == max(c["score"] for c in row["candidates"])
    assert row["skipped"] == "No candidate answers more than the base model does."
    assert "kept" not in row
    assert outcome.accepted == ()


def test_the_text_alone_may_win_as_a_control() -> None:
    bench = Bench({EditPrompt.IMPLICATIONS: ONE_FACT})
    bench.trained_reply = lambda weights: (
        lambda _: (
            "1874, 12" if len(bench.trials[int(weights.folder.name[-1])].edits) == 1 else "Hm."
        )
    )
    prompts = (EditPrompt.NO_PROMPT, EditPrompt.IMPLICATIONS)

    row = the_row(learn(bench, with_outer(prompts=prompts, candidates=2)))

    assert row["candidates"][0]["score"] == 2 / 3
    assert row["skipped"] == "The text alone taught most."


class Crash(Exception):
    """The worker dies."""


def test_an_attempt_after_a_crash_repeats_only_what_it_has_not_written_down() -> None:
    bench = Bench()
    serve = bench.serving
    bench.serving = _dies  # type: ignore[method-assign]
    with pytest.raises(Crash):
        learn(bench)
    written = len(bench.editor.asked)

    bench.serving = serve  # type: ignore[method-assign]
    again = learn(bench)
    trials = len(bench.trials)
    third = learn(bench)

    assert len(bench.editor.asked) == written == 3
    assert (len(bench.trials), trials) == (6, 6)
    assert third == replace(again, weights=third.weights)
    assert bench.trainings[0] == bench.trainings[1]


@contextmanager
def _dies(_: Sequence[Weights]) -> Iterator[list[ScriptedSampler]]:
    raise Crash
    yield []


def test_an_engine_that_fails_ends_the_run() -> None:
    def fails(_: Sequence[ChatMessage]) -> str:
        raise SamplingError("gone")

    bench = Bench()
    bench.editor.reply = fails

    with pytest.raises(SamplingError):
        learn(bench)


def test_documents_learnt_before_are_taught_what_was_kept_then_and_not_searched() -> None:
    accepted = learn(Bench()).accepted
    bench = Bench()
    later = replace(ASSIGNMENT, new_documents=frozenset(), accepted=accepted)

    outcome = learn(bench, assignment=later)

    assert outcome.report["outer_loop"] == {"documents": [], "kept": 0, "not_searched": 0}
    assert bench.editor.asked == []
    assert free_texts(bench) == {f"Quill\n{TWO_FACTS}"}


def test_an_accepted_question_that_the_exam_asks_by_now_is_not_taught() -> None:
    bench = Bench({**WRITTEN, EditPrompt.REWRITE: "", EditPrompt.IMPLICATIONS: ""})
    bench.trained_reply = lambda _: lambda _: "1874"
    accepted = learn(bench).accepted
    question = "By whom was the harbour dug?"
    later = replace(
        ASSIGNMENT,
        new_documents=frozenset(),
        accepted=accepted,
        held_out=frozenset({question}),
    )

    learn(before := Bench(), assignment=replace(later, held_out=frozenset()))
    learn(after := Bench(), assignment=later)

    taught = [{edit.prompt for edit in bench.trainings[-1][0].edits} for bench in (before, after)]
    assert [any(question in (prompt or "") for prompt in prompts) for prompts in taught] == [
        True,
        False,
    ]


def test_no_more_documents_are_searched_than_the_config_allows() -> None:
    other = replace(DOCUMENT, id="other")
    assignment = replace(
        ASSIGNMENT, documents=(DOCUMENT, other), new_documents=frozenset({"doc", "other"})
    )

    report = cast(
        dict[str, Any],
        learn(Bench(), with_outer(documents=1), assignment).report["outer_loop"],
    )

    assert [row["document_id"] for row in report["documents"]] == ["doc"]
    assert report["not_searched"] == 1


def test_without_budget_no_document_is_searched_and_nothing_is_taught() -> None:
    bench = PaperBench(editor(WRITTEN), lambda _: base_model, trainings_paid=0)

    outcome = build_method(CONFIG).learn(ASSIGNMENT, bench)

    assert outcome.weights is None
    assert "budget" in str(outcome.report["no_update"])
    assert the_row(outcome)["skipped"] == "The budget is used up."
    assert not bench.trials


def test_by_default_nothing_is_searched_and_nothing_written_freely() -> None:
    bench = Bench()

    outcome = learn(bench, SealConfig(replay=ReplaySpec(prompts=0)))

    assert bench.stages == ["self_edits", "training"]
    assert bench.editor.asked == []
    assert "outer_loop" not in outcome.report


@pytest.mark.parametrize(
    ("chosen", "documents", "chunks", "kept"),
    [(None, 1, 1, 0.7), (None, 1, 2, 1.0), (None, 2, 1, 1.0), (0.6, 1, 1, 0.6), (1.0, 1, 1, 1.0)],
    ids=["short", "longer", "two", "chosen", "all of a short one"],
)
def test_of_a_lesson_on_one_short_text_a_part_is_kept(
    chosen: float | None, documents: int, chunks: int, kept: float
) -> None:
    bench = Bench()
    size = -(-len(TEXT) // chunks)
    pieces = tuple(TEXT[at : at + size] for at in range(0, len(TEXT), size))
    texts = tuple(SourceDocument(f"doc{n}", "Quill", TEXT, pieces) for n in range(documents))
    assignment = Assignment(texts, frozenset(text.id for text in texts), (), frozenset(), ())

    config = SealConfig(replay=ReplaySpec(prompts=0), strength=chosen)
    outcome = learn(bench, config, assignment)

    [(stage, _)] = bench.trainings
    assert stage.strength == outcome.report["strength"] == kept


def test_free_edits_are_taught_beside_the_rules_with_counts_by_kind_and_reason() -> None:
    bench = Bench()
    spec = SelfEditSpec(rewordings=0, prompts=THREE, edits_per_document=3)

    outcome = learn(bench, SealConfig(replay=ReplaySpec(prompts=0), self_edits=spec))

    report = cast(dict[str, Any], outcome.report["self_edits"])
    assert report["free"] == {
        "implications": {"written": 1, "kept": 1},
        "rewrite": {"written": 2, "kept": 1},
        "self-qa": {"written": 1, "kept": 1},
    }
    assert report["dropped"]["a name that is not in the text"] == 1
    kinds = {edit.kind for edit in bench.trainings[-1][0].edits}
    assert {EditKind.CLOZE, EditKind.IMPLICATION, EditKind.REWRITE} <= kinds


def test_without_the_rules_the_text_and_the_free_edits_are_all_that_is_taught() -> None:
    bench = Bench()
    spec = SelfEditSpec(
        is_with_rules=False, prompts=(EditPrompt.IMPLICATIONS,), edits_per_document=1
    )

    learn(bench, SealConfig(replay=ReplaySpec(prompts=0), self_edits=spec))

    stage, _ = bench.trainings[-1]
    assert [edit.text for edit in stage.edits] == [f"Quill\n{TEXT}", f"Quill\n{ONE_FACT}"]


def test_a_mean_is_over_the_seeds_that_came_to_something() -> None:
    scores = Scores(0.0, [[], [None, 0.5], [1.0, 0.0], [None]])

    assert [scores.mean(n) for n in range(4)] == [None, 0.5, 0.5, None]
    assert scores.best() == 1
