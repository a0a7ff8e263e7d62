"""Self-edits made by rule: true to the text by construction, whatever model learns from them.

One fact comes in several forms (passage, sentence, cut sentence, question with a sentence or with a
bare answer for a reply), because a small model that learnt a fact in one form does not find it
again when asked in another.
"""

from collections.abc import Iterator

from adapters.corpus.questions import SpanQuestion, cloze_prompt, in_context, is_enough
from adapters.corpus.reading import Reading
from adapters.types import EditKind, SelfEdit, SourceDocument


def rule_edits(
    document: SourceDocument, reading: Reading, questions: list[SpanQuestion]
) -> list[SelfEdit]:
    """Every edit that the rules can make of a document, none twice."""
    edits = [
        *_plain(document, reading),
        *(edit for question in questions for edit in _cloze(document, reading, question)),
        *(edit for question in questions for edit in _asked(document, reading, question)),
    ]
    return list(dict.fromkeys(edits))


def _plain(document: SourceDocument, reading: Reading) -> Iterator[SelfEdit]:
    for chunk in document.chunks:
        if chunk.strip():
            yield SelfEdit(EditKind.PASSAGE, document.id, None, chunk.strip(), "rule")
    for sentence in reading.sentences:
        yield SelfEdit(EditKind.SENTENCE, document.id, None, sentence.text, "rule")
    for mentioned in reading.names:
        telling = [s.text for s in reading.sentences if mentioned in s.text]
        if len(telling) == 1:
            prompt = in_context(f"What do you know about {mentioned}?", reading)
            yield SelfEdit(EditKind.SENTENCE, document.id, prompt, telling[0], "rule")


def _cloze(
    document: SourceDocument, reading: Reading, question: SpanQuestion
) -> Iterator[SelfEdit]:
    """Cut before the answer, and two words earlier, so that the sentence is known from both."""
    for cut in (question.cut, question.cut.rsplit(" ", 2)[0]):
        if is_enough(cut):
            prompt = cloze_prompt(cut, reading)
            rest = question.sentence.text[len(cut) :].strip()
            yield SelfEdit(EditKind.CLOZE, document.id, prompt, rest, "rule")


def _asked(
    document: SourceDocument, reading: Reading, question: SpanQuestion
) -> Iterator[SelfEdit]:
    """The first form is answered with the whole sentence, the second with the span alone."""
    replies = (question.sentence.text, f"{question.answer}.")
    for form, reply in zip(question.forms, replies, strict=False):
        prompt = in_context(form, reading)
        yield SelfEdit(EditKind.QUESTION, document.id, prompt, reply, "rule")
