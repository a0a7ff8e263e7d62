"""The exam of a document: questions asked closed-book, split from the lessons before any are made.

Three kinds: the user's questions (always exam), the served model's own, checked against the text,
and cut sentences by rule, which are there however small the model is.
"""

from collections import Counter
from collections.abc import Sequence

from adapters.corpus.questions import (
    SpanQuestion,
    cloze_prompt,
    in_context,
    is_enough,
    span_questions,
)
from adapters.corpus.reading import Reading, read_text
from adapters.evaluation.question_writer import write_questions
from adapters.rewards.answers import normalise
from adapters.sampling import Sampler
from adapters.spec import SealConfig
from adapters.types import (
    ExamItem,
    ItemKind,
    ProgressCallback,
    SamplingParams,
    SourceDocument,
    build_item,
)


def build_exam_items(
    document: SourceDocument,
    *,
    questions: Sequence[tuple[str, Sequence[str]]] = (),
    sampler: Sampler | None,
    config: SealConfig,
    on_progress: ProgressCallback | None = None,
) -> tuple[list[ExamItem], list[ExamItem]]:
    """The items of a document: (held out for the exam, left to training).

    `questions` are the user's, each with its accepted answers; they are always held out. Of the
    other kinds, each by itself, `exam.exam_share` is held out in the order of the items' hashes,
    so the split depends on the text alone. Without a sampler no questions are written.

    Raises:
        SamplingError: the engine failed.
    """
    reading = read_text(document.text)
    spans = span_questions(reading.sentences)
    user = [
        build_item(ItemKind.USER, document.id, prompt=prompt.strip(), answers=tuple(answers))
        for prompt, answers in questions
    ]
    written = _written_items(document, reading, spans, sampler, config)
    if on_progress:
        on_progress(1, 1)
    seen = {normalise(item.prompt) for item in user}
    exam: list[ExamItem] = user
    train: list[ExamItem] = []
    for items in (written, _cloze_items(document, reading, spans)):
        fresh = [item for item in items if normalise(item.prompt) not in seen]
        held, rest = _split(fresh, config)
        seen.update(normalise(item.prompt) for item in fresh)
        exam, train = [*exam, *held], [*train, *rest]
    return exam, train


def _written_items(
    document: SourceDocument,
    reading: Reading,
    spans: Sequence[SpanQuestion],
    sampler: Sampler | None,
    config: SealConfig,
) -> list[ExamItem]:
    if sampler is None:
        return []
    spec = config.self_edits
    written = write_questions(
        spans[: spec.questions_per_document],
        reading,
        sampler=sampler,
        params=SamplingParams(max_tokens=spec.max_new_tokens, stop=("\n",)),
        dropped=Counter(),
    )
    return [
        build_item(
            ItemKind.MODEL,
            document.id,
            prompt=in_context(question.prompt, reading),
            answers=(question.source.answer,),
        )
        for question in written
    ]


def _cloze_items(
    document: SourceDocument, reading: Reading, spans: Sequence[SpanQuestion]
) -> list[ExamItem]:
    items = [
        build_item(
            ItemKind.CLOZE,
            document.id,
            prompt=cloze_prompt(question.cut, reading),
            answers=(question.answer,),
        )
        for question in spans
        if is_enough(question.cut)
    ]
    return list({item.id: item for item in items}.values())


def _split(items: Sequence[ExamItem], config: SealConfig) -> tuple[list[ExamItem], list[ExamItem]]:
    """The held-out share and the rest, in the order of the ids, which are hashes."""
    ordered = sorted(items, key=lambda item: item.id)
    count = min(round(len(ordered) * config.exam.exam_share), config.exam.max_items)
    return ordered[:count], ordered[count:]
