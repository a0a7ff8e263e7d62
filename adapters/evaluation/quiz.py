"""The exam of a document: questions asked closed-book, split from the lessons before any are made.

Two kinds are made here: the served model's own questions, checked against the text, and cut sentences
by rule, which are there however small the model is. Those of users and of traffic come before them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from adapters.corpus.questions import (
    SpanQuestion,
    cloze_prompt,
    in_context,
    is_enough,
    is_topic,
    span_questions,
)
from adapters.corpus.reading import Reading, read_text
from adapters.evaluation.bank import Bank
from adapters.evaluation.question_writer import QUESTION_STYLES, write_questions
from adapters.rewards.answers import normalise
from adapters.sampling import Sampler
from adapters.spec import ExamSpec, QuizSpec
from adapters.types import (
    ExamItem,
    ItemKind,
    ProgressCallback,
    SamplingParams,
    SourceDocument,
    build_item,
)

_LEAST_UNNAMED_WORDS = 5


def build_exam_items(
    document: SourceDocument,
    *,
    asked: Sequence[ExamItem] = (),
    sampler: Sampler | None,
    exam: ExamSpec,
    quiz: QuizSpec,
    on_progress: ProgressCallback | None = None,
) -> tuple[list[ExamItem], list[ExamItem]]:
    """New items of a document: (held out for the exam, left to training).

    `asked` are those that it has, by users and from traffic; what nearly repeats one of them is
    left out. Of the facts of the text, `exam.exam_share` are asked, one item each, drawn in the
    order of the items' hashes, so the split depends on the text alone. Without a sampler no
    questions are written.

    Raises:
        SamplingError: the engine failed.
    """
    reading = read_text(document.rule_text)
    spans = span_questions(reading.sentences)
    facts: dict[SpanQuestion, list[ExamItem]] = {span: [] for span in spans}
    for span, prompt in _written(reading, spans, sampler, quiz):
        facts[span].append(_item(ItemKind.MODEL, document, span, prompt))
    for span in spans:
        if _is_telling(span.cut, reading) and not is_topic(span, reading):
            prompt = cloze_prompt(span.cut, reading)
            facts[span].append(_item(ItemKind.CLOZE, document, span, prompt))
    if on_progress:
        on_progress(1, 1)
    return _split(_fresh(asked, facts.values()), exam)


def write_further_items(
    document: SourceDocument,
    count: int,
    *,
    exam: Sequence[ExamItem],
    train: Sequence[ExamItem],
    sampler: Sampler,
    quiz: QuizSpec,
    is_taught: Callable[[str], bool],
    dropped: Counter[str],
) -> list[ExamItem]:
    """At most `count` more questions in the model's words, on spans that no exam item asks for.

    In words that no item here has, and that no lesson has taught. The model is asked greedily, once
    with each set of examples. `dropped` counts what was refused, by reason.

    Raises:
        SamplingError: the engine failed.
    """
    reading = read_text(document.rule_text)
    answered = {normalise(answer) for item in exam for answer in item.answers}
    spans = [
        span for span in span_questions(reading.sentences) if normalise(span.answer) not in answered
    ]
    bank = Bank((*exam, *train))
    found: list[ExamItem] = []
    for style in range(QUESTION_STYLES):
        for question in write_questions(
            spans,
            reading,
            sampler=sampler,
            params=SamplingParams(max_tokens=quiz.max_new_tokens, stop=("\n",)),
            dropped=dropped,
            style=style,
        ):
            item = _item(
                ItemKind.MODEL, document, question.source, in_context(question.prompt, reading)
            )
            if normalise(question.source.answer) in answered or len(found) == count:
                continue  # one question for each fact, and no more than were asked for
            if is_taught(item.prompt):
                dropped["may have been taught"] += 1
            elif not bank.add(item):
                dropped["asked already"] += 1
            else:
                answered.add(normalise(question.source.answer))
                found.append(item)
        spans = [span for span in spans if normalise(span.answer) not in answered]
        if len(found) == count:
            break
    return found


def _written(
    reading: Reading, spans: Sequence[SpanQuestion], sampler: Sampler | None, spec: QuizSpec
) -> Iterator[tuple[SpanQuestion, str]]:
    """Spans with the prompt that the model asks for them."""
    if sampler is None:
        return
    for question in write_questions(
        spans[: spec.questions_per_document],
        reading,
        sampler=sampler,
        params=SamplingParams(max_tokens=spec.max_new_tokens, stop=("\n",)),
        dropped=Counter(),
    ):
        yield question.source, in_context(question.prompt, reading)


def _is_telling(cut: str, reading: Reading) -> bool:
    """Whether the beginning of a sentence leaves no doubt which sentence it is."""
    is_named = any(name in cut for name in reading.names)
    return is_enough(cut) and (is_named or len(cut.split()) >= _LEAST_UNNAMED_WORDS)


def _item(kind: ItemKind, document: SourceDocument, span: SpanQuestion, prompt: str) -> ExamItem:
    return build_item(kind, document.id, prompt=prompt, answers=(span.answer,))


def _fresh(asked: Sequence[ExamItem], facts: Iterable[Sequence[ExamItem]]) -> list[list[ExamItem]]:
    """The items of each fact that repeat nothing before; facts without items left out."""
    bank = Bank(asked)
    kept = [[item for item in items if bank.add(item)] for items in facts]
    return [items for items in kept if items]


def _split(
    facts: Sequence[Sequence[ExamItem]], spec: ExamSpec
) -> tuple[list[ExamItem], list[ExamItem]]:
    """The held-out share and the rest, in the order of the ids, which are hashes.

    Of one fact at most one item is held out, so that it is taught in its other forms.
    """
    by_id = [sorted(items, key=lambda item: item.id) for items in facts]
    ordered = sorted(by_id, key=lambda items: items[0].id)
    count = min(round(len(ordered) * spec.exam_share), spec.max_items)
    held = [items[0] for items in ordered[:count]]
    rest = [item for items in ordered[:count] for item in items[1:]]
    return held, [*rest, *(item for items in ordered[count:] for item in items)]
