"""The exam of a document: questions asked closed-book, split from the lessons before any are made.

Three kinds: the user's questions (always exam), the served model's own, checked against the text,
and cut sentences by rule, which are there however small the model is.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from adapters.corpus.questions import (
    SpanQuestion,
    cloze_prompt,
    in_context,
    is_enough,
    is_topic,
    span_questions,
)
from adapters.corpus.reading import Reading, read_text
from adapters.evaluation.question_writer import write_questions
from adapters.rewards.answers import normalise
from adapters.sampling import Sampler
from adapters.spec import MethodConfig, SealConfig, SelfEditSpec
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
    questions: Sequence[tuple[str, Sequence[str]]] = (),
    sampler: Sampler | None,
    config: MethodConfig,
    on_progress: ProgressCallback | None = None,
) -> tuple[list[ExamItem], list[ExamItem]]:
    """The items of a document: (held out for the exam, left to training).

    `questions` are the user's, each with its accepted answers; they are always held out. Of the
    facts of the text, `exam.exam_share` are asked, one item each, drawn in the order of the items'
    hashes, so the split depends on the text alone. Without a sampler no questions are written.

    Raises:
        SamplingError: the engine failed.
    """
    reading = read_text(document.text)
    spans = span_questions(reading.sentences)
    user = [
        build_item(ItemKind.USER, document.id, prompt=prompt.strip(), answers=tuple(answers))
        for prompt, answers in questions
    ]
    facts: dict[SpanQuestion, list[ExamItem]] = {span: [] for span in spans}
    for span, prompt in _written(reading, spans, sampler, config):
        facts[span].append(_item(ItemKind.MODEL, document, span, prompt))
    for span in spans:
        if _is_telling(span.cut, reading) and not is_topic(span, reading):
            prompt = cloze_prompt(span.cut, reading)
            facts[span].append(_item(ItemKind.CLOZE, document, span, prompt))
    if on_progress:
        on_progress(1, 1)
    held, rest = _split(_fresh(user, facts.values()), config)
    return [*user, *held], rest


def _written(
    reading: Reading, spans: Sequence[SpanQuestion], sampler: Sampler | None, config: MethodConfig
) -> Iterator[tuple[SpanQuestion, str]]:
    """Spans with the prompt that the model asks for them."""
    if sampler is None:
        return
    spec = config.self_edits if isinstance(config, SealConfig) else SelfEditSpec()
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


def _fresh(user: Sequence[ExamItem], facts: Iterable[Sequence[ExamItem]]) -> list[list[ExamItem]]:
    """The items of each fact without prompts that stood before; facts without items left out."""
    seen = {normalise(item.prompt) for item in user}
    kept: list[list[ExamItem]] = []
    for items in facts:
        fresh = [item for item in items if normalise(item.prompt) not in seen]
        seen.update(normalise(item.prompt) for item in fresh)
        if fresh:
            kept.append(fresh)
    return kept


def _split(
    facts: Sequence[Sequence[ExamItem]], config: MethodConfig
) -> tuple[list[ExamItem], list[ExamItem]]:
    """The held-out share and the rest, in the order of the ids, which are hashes.

    Of one fact at most one item is held out, so that it is taught in its other forms.
    """
    by_id = [sorted(items, key=lambda item: item.id) for items in facts]
    ordered = sorted(by_id, key=lambda items: items[0].id)
    count = min(round(len(ordered) * config.exam.exam_share), config.exam.max_items)
    held = [items[0] for items in ordered[:count]]
    rest = [item for items in ordered[:count] for item in items[1:]]
    return held, [*rest, *(item for items in ordered[count:] for item in items)]
