"""Self-edits made by rule: true to the text by construction, whatever model learns from them.

One fact comes in several forms (passage, sentence, cut sentence, question with a sentence or with a
bare answer for a reply), because a small model that learnt a fact in one form does not find it
again when asked in another.
"""

from collections.abc import Iterator

from adapters.corpus.questions import SpanQuestion, cloze_prompt, in_context
from adapters.corpus.reading import Reading
from adapters.types import EditKind, SelfEdit, SourceDocument


def rule_edits(
    document: SourceDocument, reading: Reading, questions: list[SpanQuestion]
) -> list[SelfEdit]:
    """Every edit that the rules can make of a document, none twice."""
    edits = [
        *_plain(document, reading),
        *(_cloze(document, reading, question) for question in questions if question.is_cuttable),
        *(edit for question in questions for edit in _asked(document, reading, question)),
    ]
    return list(dict.fromkeys(edits))


def _plain(document: SourceDocument, reading: Reading) -> Iterator[SelfEdit]:
    for chunk in document.chunks:
        if chunk.strip():
            yield SelfEdit(EditKind.PASSAGE, document.id, None, chunk.strip(), "rule")
    for sentence in reading.sentences:
        yield SelfEdit(EditKind.SENTENCE, document.id, None, sentence.text, "rule")


def _cloze(document: SourceDocument, reading: Reading, question: SpanQuestion) -> SelfEdit:
    rest = question.sentence.text[question.span.start :]
    return SelfEdit(EditKind.CLOZE, document.id, cloze_prompt(question, reading), rest, "rule")


def _asked(
    document: SourceDocument, reading: Reading, question: SpanQuestion
) -> Iterator[SelfEdit]:
    """The first form is answered with the whole sentence, the second with the span alone."""
    replies = (question.sentence.text, f"{question.answer}.")
    for form, reply in zip(question.forms, replies, strict=False):
        prompt = in_context(form, reading)
        yield SelfEdit(EditKind.QUESTION, document.id, prompt, reply, "rule")
