"""Questions made from a sentence by rule: cut before an answer, or with a question word in its place.

Every question's answer is a span of its sentence, so it is true to the text whatever model reads
it. Not covered: elegance; a verb is never inflected, only auxiliaries move.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from adapters.corpus.reading import Reading, Sentence
from adapters.corpus.spans import Span, SpanKind

_AUXILIARY = re.compile(
    r" (?P<aux>is|was|are|were|can|could|must|will|would|has been|have been|had been|may|should) "
)
_PREPOSITION = re.compile(
    r"(?P<preposition>\b(?:in|on|at|by|from|to|for|with|under|of|until|since|after|before|into|near"
    r"|about|than|over|within|every|during|between|through|around|against|across|along|behind"
    r"|beside|inside|outside|toward|towards))(?P<article> the| a| an)? $"
)
_NOUN_BEFORE = re.compile(
    r"\b(?:[Tt]he|[Aa]n?|[Ii]ts|[Hh]is|[Hh]er|[Tt]heir) "
    r"(?P<noun>(?:(?!of |called |named |that )[a-z][\w-]* )?(?!of |called |named )[a-z][\w-]*)"
    r"(?P<link> (?:of|called|named)(?: the)?)? $"
)
_NOUN_AFTER = re.compile(r" (?P<noun>[a-z][\w-]*)")
_WHO = {True: "who", False: "what", None: "who or what"}
_YEAR = re.compile(r"1[0-9]{3}|20[0-9]{2}")
_CLAUSE_END = re.compile(r"[,;:]| (?:and|but|who|which|that|where|when|because|while) ")
_SUBJECT_BREAK = re.compile(r"[,;:]")


_LEAST_CUT_WORDS = 3
_COMPLETE = "Complete: "
_MOST_TOPIC_CHARS = 120
_AROUND = re.compile(rf"^(?:Complete: )?(?:About [^:?]{{1,{_MOST_TOPIC_CHARS}}}: )?")


@dataclass(frozen=True, slots=True)
class SpanQuestion:
    """A span of a sentence and the ways to ask for it; `forms` are without instructions."""

    sentence: Sentence
    span: Span
    cut: str
    echo: str
    forms: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The span's text."""
        return self.span.text

    @property
    def is_number(self) -> bool:
        """Whether the answer is a number or date, and no name."""
        return self.span.kind is not SpanKind.NAME


def span_questions(sentences: Iterable[Sentence]) -> list[SpanQuestion]:
    """A question for each span that a reader of the rest of its sentence could be asked for."""
    return [
        build_span_question(sentence, span)
        for sentence in sentences
        for span in sentence.spans
        if _is_askable(sentence, span)
    ]


def cloze_prompt(cut: str, reading: Reading) -> str:
    """The instruction to complete a sentence of which `cut` is the beginning."""
    return _COMPLETE + in_context(cut, reading)


def is_topic(question: SpanQuestion, reading: Reading) -> bool:
    """Whether the answer is what the whole text is about, so that nearly any reply names it."""
    topic = (reading.topic or "").removeprefix("the ")
    return question.answer == topic


def is_enough(cut: str) -> bool:
    """Whether the beginning of a sentence says enough to be completed from memory."""
    return len(cut.split()) >= _LEAST_CUT_WORDS


def in_context(prompt: str, reading: Reading) -> str:
    """The prompt, after "About TOPIC:" unless it names something of the text itself.

    Asked alone, "The director is who?" says of what text; this does.
    """
    if reading.topic is None or any(name in prompt for name in reading.names):
        return prompt
    return about(_short(reading.topic), prompt)


def about(topic: str, prompt: str) -> str:
    """The prompt behind "About TOPIC:", of whatever form the topic is."""
    plain = " ".join(re.sub("[:?]", " ", topic).split())[:_MOST_TOPIC_CHARS]
    return f"About {plain}: {prompt}" if plain else prompt


def cut_of(prompt: str) -> str:
    """A prompt without what `cloze_prompt`, `in_context` and `about` put before it."""
    return prompt[_AROUND.match(prompt).end() :]  # type: ignore[union-attr]  # matches always


def build_span_question(sentence: Sentence, span: Span) -> SpanQuestion:
    """Ask for `span`: the sentence cut before it, with a question word in its place, and turned."""
    text = sentence.text
    start, end, wh = _question_phrase(text, span)
    clause = text[end:]
    stop = _CLAUSE_END.search(clause)
    clause = clause[: stop.start()] if stop else clause.rstrip(".!?")
    echo = _sentence_case(f"{text[:start]}{wh}{clause}?")
    turned = _turned(text[:start], wh, clause)
    forms = (turned, echo) if turned else (echo,)
    return SpanQuestion(sentence, span, text[: span.start].rstrip(), echo, forms)


def _short(topic: str) -> str:
    """What people say for it: "the Tidewater Museum" for "the Tidewater Museum of Orm"."""
    head = topic.partition(" of ")[0]
    return head if len(head.removeprefix("the ").split()) > 1 else topic


def _is_askable(sentence: Sentence, span: Span) -> bool:
    """Something must be left to ask by: two words at least besides the span."""
    others = (sentence.text[: span.start] + sentence.text[span.end :]).split()
    return len(others) > 3 and sentence.text.count(span.text) == 1


def _question_phrase(text: str, span: Span) -> tuple[int, int, str]:
    """Where the question word goes: start and end in the text, and the phrase.

    A preposition before the span moves into the phrase: "in 1987" -> "in what year".
    """
    before, end = text[: span.start], span.end
    noun = _NOUN_BEFORE.search(before)
    wh = "what"
    start = span.start
    if span.kind is SpanKind.DATE:
        wh = "what date"
    elif (
        span.kind is SpanKind.NUMBER
        and _YEAR.fullmatch(span.text)
        and before.endswith(("in ", "In ", "since ", "from ", "until ", "by "))
    ):
        wh = "what year"
    elif span.kind is SpanKind.NUMBER:
        after = _NOUN_AFTER.match(text, span.end)
        if after and not (noun and noun["link"]):
            wh, end = f"how many {after['noun']}", after.end()
        else:
            wh = "what number"
    elif noun:
        start, wh = noun.start(), f"which {noun['noun']}"
    else:
        article = re.search(r"\b[Tt]he $", before)
        start = article.start() if article else start
        if text[end:].startswith(("'s ", "' ", "\u2019s ")):
            wh, end = "whose", text.index(" ", end)
        else:
            wh = _WHO[span.is_person]
    preposition = _PREPOSITION.search(text[:start])
    if preposition:
        start = preposition.start()
        wh = f"{preposition['preposition']} {wh}"
    return start, end, wh


def _turned(before: str, wh: str, clause: str) -> str | None:
    """The question word in front and the auxiliary behind it, if the clause has an auxiliary."""
    if not before.strip():
        return None
    auxiliary = _AUXILIARY.search(before + " ")
    if auxiliary is None or _SUBJECT_BREAK.search(before[: auxiliary.start()]):
        return None
    subject = _lower_article(before[: auxiliary.start()].strip())
    rest = before[auxiliary.end() :].strip()
    if _CLAUSE_END.search(f" {rest} ") or not subject:
        return None
    words = (wh, auxiliary["aux"].partition(" ")[0], subject)
    tail = (auxiliary["aux"].partition(" ")[2], rest, clause.strip())
    return _sentence_case(" ".join(word for word in (*words, *tail) if word) + "?")


def _lower_article(subject: str) -> str:
    first, _, rest = subject.partition(" ")
    return (
        f"{first.lower()} {rest}" if first in {"The", "A", "An", "This", "Its", "His"} else subject
    )


def _sentence_case(question: str) -> str:
    question = re.sub(r"\s+([?,.])", r"\1", " ".join(question.split()))
    return question[:1].upper() + question[1:]
