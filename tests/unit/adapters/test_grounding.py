"""Grounding: nothing that the text does not bear out is taught, and what is dropped is counted."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.corpus.grounding import Source, Ungrounded
from adapters.corpus.sentences import split_sentences
from adapters.methods.free_edits import PassageEdit, Piece, split_reply
from adapters.methods.grounding import NO_JUDGE, NOT_SO, Grounded, ground
from adapters.methods.held_out import HeldOut
from adapters.spec import EditPrompt
from adapters.types import SourceDocument
from tests.support.workbench import ScriptedSampler

TEXT = (
    "The Harbour of Quill lies on the coast of Marrow. It was dug in 1874 by the engineer "
    "Ada Penhallow, who never saw the sea. The harbour has 12 cranes, and the oldest is called "
    "Long Meg. On 3 May 1902 a whale blocked it for nine days. The present master is Otto Brane. "
    "It cost 1,200 pounds and two hundred and five thousand bricks."
)
DOCUMENT = SourceDocument("doc", "Quill", TEXT, (TEXT,))
SOURCE = Source(TEXT)
NO_EXAM = HeldOut([])
INFERRED = ("Long Meg is a crane.", "Otto Brane never saw a whale.")
"""True or not, but with no name or number that the text has not."""

SENTENCES = st.lists(
    st.builds(
        lambda words: " ".join(["The", *words]) + ".",
        st.lists(
            st.sampled_from(
                [
                    "harbour",
                    "pump",
                    "has",
                    "was",
                    "12",
                    "1,200",
                    "Ada",
                    "Penhallow",
                    "Quill",
                    "three",
                    "May",
                    "1902",
                    "3",
                    "and",
                    "the",
                    "of",
                    "old",
                    "Meg's",
                    "twenty-one",
                    "7.5",
                    "called",
                    "hundred",
                ]
            ),
            min_size=3,
            max_size=12,
        ),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize(
    "statement",
    [
        "The Harbour of Quill was dug in 1874.",
        "Ada Penhallow dug the Harbour of Quill.",
        "Harbour of Quill has twelve cranes.",
        "A whale blocked it for 9 days in May 1902.",
        "It was blocked on 1902-05-03.",
        "It was blocked on May 3, 1902.",
        "It cost 1200 pounds and 205,000 bricks.",
        "Quill's oldest crane is Long Meg.",
        "One of its masters is Otto Brane.",
        "Visitors find cranes there.",
        "In 1874 Ada Penhallow dug it.",
        "Built by Ada Penhallow, it has cranes.",
        "Otto Brane and Ada Penhallow know it.",
    ],
)
def test_what_the_text_has_is_grounded_however_it_is_written(statement: str) -> None:
    assert SOURCE.fault_of(statement) is None


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("The Harbour of Quill was dug in 1875.", Ungrounded.NUMBER),
        ("It was dug in the 1870s.", Ungrounded.NUMBER),
        ("The harbour has thirteen cranes.", Ungrounded.NUMBER),
        ("It was blocked on 4 May 1902.", Ungrounded.DATE),
        ("It was blocked in May 1874.", Ungrounded.DATE),
        ("It was blocked on 1902-03-05.", Ungrounded.DATE),
        ("Otto Penhallow is its master.", Ungrounded.NAME),
        ("Its master knew Queen Victoria.", Ungrounded.NAME),
        ("Paris is near.", Ungrounded.NAME),
        ("Einstein visited it.", Ungrounded.NAME),
        ('The oldest crane is called "Short Meg".', Ungrounded.NAME),
        ("The master met \u00c9mile.", Ungrounded.NAME),
    ],
)
def test_an_invention_is_told_by_its_sort(statement: str, fault: Ungrounded) -> None:
    assert SOURCE.fault_of(statement) is fault


@given(SENTENCES)
def test_a_text_bears_out_each_of_its_sentences(sentences: list[str]) -> None:
    text = " ".join(sentences)

    assert [s for s in split_sentences(text) if Source(text).fault_of(s)] == []


@given(
    st.sampled_from(split_sentences(TEXT)),
    st.integers(min_value=0, max_value=100),
    st.sampled_from(["Zorbel", "Ruth Adler", "77", "seventy-seven", "6 June 1944", "B-52"]),
)
def test_no_place_hides_an_invention(sentence: str, place: int, invention: str) -> None:
    words = sentence.split()
    place %= len(words)
    # In the midst of a run of words, so that it may come to stand inside a name or a date.
    altered = " ".join([*words[:place], invention, *words[place:]])

    assert SOURCE.fault_of(altered) is not None


@given(st.text(), st.text())
def test_no_text_is_too_strange(text: str, statement: str) -> None:
    Source(text).fault_of(statement)


def statements(*texts: str) -> PassageEdit:
    return PassageEdit(EditPrompt.IMPLICATIONS, "?", TEXT, tuple(map(Piece, texts)))


def pairs(**answers: str) -> PassageEdit:
    pieces = tuple(Piece(answer, question) for question, answer in answers.items())
    return PassageEdit(EditPrompt.SELF_QA, "?", TEXT, pieces)


def look(
    edit: PassageEdit,
    reply: Callable[[str], str] = lambda _: "Yes.",
    exam: HeldOut = NO_EXAM,
) -> Grounded:
    reader = ScriptedSampler(lambda said: reply(said[-1]["content"]))
    [grounded] = ground(DOCUMENT, [[edit]], reader=reader, exam=exam)
    return grounded


def kept(grounded: Grounded) -> list[str]:
    return [piece.text for edit in grounded.edits for piece in edit.pieces]


def test_statements_that_stand_up_to_both_looks_are_kept() -> None:
    true, false = "The harbour has 12 cranes.", "The harbour has 9 cranes."

    grounded = look(statements(true, false), lambda p: "No" if false in p else "yes, it is")

    assert kept(grounded) == [true]
    assert grounded.dropped == {"not so, says the model that was shown the text": 1}


@pytest.mark.parametrize(
    ("denied_of_text", "reason"),
    [(6, NO_JUDGE), (3, NO_JUDGE), (2, NOT_SO), (0, NOT_SO)],
    ids=["all", "most of four", "half of four", "none"],
)
def test_a_model_that_denies_the_text_itself_is_no_judge(denied_of_text: int, reason: str) -> None:
    denied = {*split_sentences(TEXT)[:denied_of_text], *INFERRED}
    grounded = look(
        statements(*INFERRED),
        lambda p: "No." if p.split("Statement: ")[1].split("\n")[0] in denied else "Yes.",
    )

    assert kept(grounded) == []
    assert grounded.dropped == {reason: len(INFERRED)}


def test_who_agrees_to_something_is_not_asked_about_the_text_itself() -> None:
    reader = ScriptedSampler(
        lambda said: "Yes." if "has 12" in said[-1]["content"][-150:] else "No."
    )

    ground(DOCUMENT, [[statements("The harbour has 12 cranes.")]], reader=reader, exam=NO_EXAM)

    assert len(reader.asked) == 1


def test_without_the_models_word_the_rules_alone_decide() -> None:
    reader = ScriptedSampler(lambda _: "No.")
    edit = statements("The harbour has 12 cranes.", "The harbour has 7 cranes.")

    [grounded] = ground(DOCUMENT, [[edit]], reader=reader, exam=NO_EXAM, needs_agreement=False)

    assert kept(grounded) == ["The harbour has 12 cranes."]
    assert reader.asked == []


def test_the_model_is_not_asked_about_what_the_rules_have_dropped() -> None:
    reader = ScriptedSampler(lambda _: "Yes.")

    ground(DOCUMENT, [[statements("Paris is the capital of it.")]], reader=reader, exam=NO_EXAM)

    assert reader.asked == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("...", "empty"),
        ("The cranes.", "too short"),
        ("cranes " * 20 + ".", "repeats itself"),
        ("The harbour has 13 cranes.", Ungrounded.NUMBER.value),
        ("The harbour has 12 cranes and", "breaks off"),
        (TEXT, "repeats another"),
        ("Who is the present master? It is Otto Brane.", "holds a question"),
    ],
)
def test_a_statement_is_dropped_for_its_reason(text: str, reason: str) -> None:
    assert look(statements(text)).dropped == {reason: 1}


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("How many cranes?", "...", "empty"),
        ("Cranes?", "12", "too short"),
        ("How many cranes has it", "12", "not one question"),
        ("How many cranes has it? And why?", "12", "not one question"),
        ("Are there 12 cranes there?", "12", "gives the answer away"),
        ("How many cranes has it?", "13", Ungrounded.NUMBER.value),
        ("How many cranes has Paris?", "12", Ungrounded.NAME.value),
        ("Who is the present master?", "Otto Brane", "asked in the exam"),
        ("When was it dug?", "1874. Who is the master? Otto Brane", "holds a question"),
        ("When was it dug?", "1874", "answered otherwise from the text"),
    ],
)
def test_a_question_is_dropped_for_its_reason(question: str, answer: str, reason: str) -> None:
    exam = HeldOut(["Who is the present master?"])

    grounded = look(pairs(**{question: answer}), lambda _: "I do not know.", exam)

    assert grounded.dropped == {reason: 1}
    assert grounded.edits == ()


def test_only_the_last_item_of_a_list_must_end_as_a_sentence_does() -> None:
    grounded = look(statements("The harbour has 12 cranes", "It is dug,", "The sea is near."))

    assert kept(grounded) == ["The harbour has 12 cranes", "The sea is near."]
    assert grounded.dropped == {"breaks off": 1}


def test_a_question_that_the_text_answers_alike_is_kept() -> None:
    grounded = look(
        pairs(**{"How many cranes are there?": "12 cranes"}), lambda _: "It has 12 cranes."
    )

    assert kept(grounded) == ["12 cranes"]


def test_a_piece_counts_once_over_all_candidates_or_once_in_each() -> None:
    edit = statements("The harbour has 12 cranes.")
    reader = ScriptedSampler(lambda _: "Yes.")

    together = ground(DOCUMENT, [[edit], [edit]], reader=reader, exam=NO_EXAM)
    apart = ground(DOCUMENT, [[edit], [edit]], reader=reader, exam=NO_EXAM, is_apart=True)

    assert [len(kept(each)) for each in together] == [1, 0]
    assert together[1].dropped == {"repeats another": 1}
    assert [len(kept(each)) for each in apart] == [1, 1]
    assert len(reader.asked) == 2  # of equal questions to the reader only one is put


def test_a_reply_without_the_form_asked_for_is_counted() -> None:
    edit = PassageEdit(EditPrompt.SELF_QA, "?", TEXT, ())

    assert look(edit).dropped == {"not in the form asked for": 1}


@given(st.lists(st.one_of(st.text(), st.sampled_from([TEXT, *split_sentences(TEXT)]))))
def test_every_piece_is_kept_or_counted_and_what_is_kept_is_borne_out(lines: list[str]) -> None:
    pieces = tuple(split_reply(EditPrompt.IMPLICATIONS, "\n".join(lines)))
    edit = PassageEdit(EditPrompt.IMPLICATIONS, "?", TEXT, pieces)

    grounded = look(edit)

    left = kept(grounded)
    others = Counter(grounded.dropped)
    del others["not in the form asked for"]
    assert len(left) + others.total() == len(pieces)
    assert [text for text in left if Source(f"{DOCUMENT.title}\n\n{TEXT}").fault_of(text)] == []
