"""Reading a text by rule: sentences, subjects, spans and the questions made of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.corpus.questions import cloze_prompt, cut_of, in_context, span_questions
from adapters.corpus.reading import read_text
from adapters.corpus.sentences import split_sentences
from adapters.corpus.spans import SpanKind, find_spans, known_names

HARBOUR = (
    "The Harbour of Quill lies on the coast of Marrow. It was dug in 1874 by the engineer "
    "Ada Penhallow, who never saw the sea. The harbour has 12 cranes. On 3 May 1902 a whale "
    "blocked it."
)


def test_sentences_end_at_full_stops_but_not_at_abbreviations_and_initials() -> None:
    text = "Dr. Orr met J. Bell at 7.30. They ate 2.5 kg of figs! Was it St. Ives? It was there."

    assert split_sentences(text) == [
        "Dr. Orr met J. Bell at 7.30.",
        "They ate 2.5 kg of figs!",
        "Was it St. Ives?",
        "It was there.",
    ]


def test_headings_are_left_out_and_list_items_stand_alone() -> None:
    text = "# The manual\n\n- Press the *red* knob twice.\n- Wait for\n  the lamp.\n"

    assert split_sentences(text) == ["Press the red knob twice.", "Wait for the lamp."]


def test_a_pronoun_and_a_common_noun_get_their_name() -> None:
    reading = read_text(HARBOUR)

    assert [sentence.text for sentence in reading.sentences] == [
        "The Harbour of Quill lies on the coast of Marrow.",
        "The Harbour of Quill was dug in 1874 by the engineer Ada Penhallow, who never saw the "
        "sea.",
        "The Harbour of Quill has 12 cranes.",
        "On 3 May 1902 a whale blocked it.",
    ]
    assert reading.topic == "the Harbour of Quill"


def test_a_person_is_told_by_he_or_she() -> None:
    reading = read_text("Mira Vale wrote songs. In 1938 she opened a shop. Her cat was Tom.")

    assert [s.text for s in reading.sentences] == [
        "Mira Vale wrote songs.",
        "In 1938 Mira Vale opened a shop.",
        "Mira Vale's cat was Tom.",
    ]
    assert reading.sentences[0].spans[0].is_person is True


def test_a_pronoun_with_nothing_before_it_stays() -> None:
    assert read_text("It rains in Orm all day.").sentences[0].text == "It rains in Orm all day."


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("It opens on 14 March 1987 at noon.", [(SpanKind.DATE, "14 March 1987")]),
        ("It opens on March 14, 1987 at noon.", [(SpanKind.DATE, "March 14, 1987")]),
        ("She sold 4,312 pears for 7.5 crowns.", [(SpanKind.NUMBER, "4,312"), ("number", "7.5")]),
        ("Order part QX-88 or call 0700 552 19.", [("name", "QX-88"), ("number", "0700 552 19")]),
        ("The lamp blinks three times in Orm.", [("number", "three"), ("name", "Orm")]),
        ('They sang "The Lamp on the Pass" again.', [("name", "The Lamp on the Pass")]),
        ("Nothing is named here.", []),
    ],
)
def test_dates_numbers_and_names_are_found(sentence: str, expected: list[tuple[str, str]]) -> None:
    spans = find_spans(sentence, known_names([sentence]))

    assert [(span.kind, span.text) for span in spans] == expected


def test_a_capital_at_a_sentence_start_makes_no_name() -> None:
    assert known_names(["Visitors like Orm.", "Orm is small.", "However, it rains."]) == ("Orm",)


def test_questions_put_the_question_word_in_place_of_the_answer() -> None:
    forms = {q.answer: q.forms for q in span_questions(read_text(HARBOUR).sentences)}

    assert forms["Marrow"] == ("The Harbour of Quill lies on which coast?",)
    assert forms["1874"] == (
        "In what year was the Harbour of Quill dug by the engineer Ada Penhallow?",
        "The Harbour of Quill was dug in what year by the engineer Ada Penhallow?",
    )
    assert forms["Ada Penhallow"] == (
        "By which engineer was the Harbour of Quill dug in 1874?",
        "The Harbour of Quill was dug in 1874 by which engineer?",
    )
    assert forms["12"] == ("The Harbour of Quill has how many cranes?",)


def test_a_prompt_that_names_nothing_gets_the_topic() -> None:
    reading = read_text(HARBOUR)

    assert in_context("Who dug it?", reading) == "About the Harbour of Quill: Who dug it?"
    assert in_context("Who was Ada Penhallow?", reading) == "Who was Ada Penhallow?"


def test_a_cloze_is_cut_before_its_answer() -> None:
    reading = read_text(HARBOUR)
    question = next(q for q in span_questions(reading.sentences) if q.answer == "1874")

    prompt = cloze_prompt(question.cut, reading)

    assert prompt == "Complete: The Harbour of Quill was dug in"
    assert cut_of(prompt) == "The Harbour of Quill was dug in"
    assert cut_of("Complete: About the Harbour of Quill: There are") == "There are"


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    reading = read_text(text)

    for sentence in reading.sentences:
        for span in sentence.spans:
            assert sentence.text[span.start : span.end] == span.text
    for question in span_questions(reading.sentences):
        assert question.forms
        assert cloze_prompt(question.cut, reading).endswith(question.cut)


_WORDS = st.sampled_from(
    [
        "The",
        "It",
        "She",
        "In",
        "Orm",
        "Ada",
        "museum",
        "was",
        "is",
        "founded",
        "by",
        "who",
        "1987",
        ",",
        ".",
        "!",
        "four",
        "of",
        "named",
        "called",
        "12",
        "May",
        "and",
        "'s",
        '"',
        "#",
        "-",
    ]
)


@given(st.lists(_WORDS, max_size=40).map(" ".join))
def test_prose_in_any_order_can_be_read(text: str) -> None:
    for question in span_questions(read_text(text).sentences):
        assert question.answer in question.sentence.text
