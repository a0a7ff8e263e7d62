"""Questions that the served model writes while it sees the text, each checked against it.

A small model cannot think of a question to a given answer, but it can turn one round: the rules put
a question word in place of the answer ("The collection holds how many instruments?"), the model
says it as a person would ("How many instruments does the collection hold?"). Whatever fails a check
is dropped; a model too small to write leaves none, and that is no error.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.corpus.questions import SpanQuestion, is_topic
from adapters.corpus.reading import Reading
from adapters.evaluation.open_book import open_book
from adapters.evaluation.question_checks import fault_of, is_foreign, is_inventive
from adapters.rewards.answers import is_correct, normalise
from adapters.sampling import Sampler
from adapters.types import ChatMessage, SamplingParams

_EXAMPLES = (
    (
        ("The Golden Crumb was opened by which Dutch baker?", "Who opened the Golden Crumb?"),
        ("The Golden Crumb was opened in what year?", "When did the Golden Crumb open?"),
        (
            "Lake Orm lies how many metres above the sea?",
            "How many metres above the sea does Lake Orm lie?",
        ),
        ("The parrot of the inn is called what?", "What is the name of the inn's parrot?"),
        (
            "After the war Anna Bell moved to which town?",
            "To which town did Anna Bell move after the war?",
        ),
        ("The owner of the farm is who?", "Who owns the farm?"),
    ),
    (
        ("Doctor Reeve was born on what date?", "When was Doctor Reeve born?"),
        ("The old bridge was built by who?", "Who built the old bridge?"),
        ("The lift can carry how many people?", "How many people fit in the lift?"),
        ("The path leads to which lake?", "Which lake does the path go to?"),
        ("The captain's ship was called what?", "What was the captain's ship called?"),
        ("Mira Stone won what in 1990?", "What did Mira Stone win in 1990?"),
    ),
)
QUESTION_STYLES = len(_EXAMPLES)
"""Sets of examples, each of which makes a model ask otherwise."""
_INSTRUCTION = "Ask this in better English: {}"
_REPLY_TOKENS = 32
_EXAMPLE_WORDS = frozenset(
    word
    for examples in _EXAMPLES
    for pair in examples
    for word in normalise(" ".join(pair)).split()
    if len(word) > 3
)


@dataclass(frozen=True, slots=True)
class WrittenQuestion:
    """A question in the model's words, to which the span of `source` is the answer.

    `reply` is the model's own answer from the text, where every name and number of it is in the
    text; else None.
    """

    prompt: str
    source: SpanQuestion
    reply: str | None


def write_questions(
    questions: Sequence[SpanQuestion],
    reading: Reading,
    *,
    sampler: Sampler,
    params: SamplingParams,
    dropped: Counter[str],
    style: int = 0,
) -> list[WrittenQuestion]:
    """At most one question per given span, asked in the model's own words, in order.

    A span that is the text's topic is passed over: nearly every reply names the topic.

    `style` picks the examples that the model imitates. `dropped` counts what was refused, by
    reason.

    Raises:
        SamplingError: the engine failed.
    """
    questions = [q for q in questions if not is_topic(q, reading)]
    if not questions:
        return []
    written = sampler.chat([_turn_round(q.echo, style) for q in questions], params)
    drafts: list[tuple[str, SpanQuestion]] = []
    seen: set[str] = set()
    for question, reply in zip(questions, written, strict=True):
        prompt = reply.strip().partition("\n")[0].strip().strip('"')
        reason = fault_of(prompt, question, reading, example_words=_EXAMPLE_WORDS) or (
            "repeated" if normalise(prompt) in seen else None
        )
        if reason:
            dropped[reason] += 1
            continue
        seen.add(normalise(prompt))
        drafts.append((prompt, question))
    return _answered_from_text(drafts, reading, sampler, dropped)


def _turn_round(echo: str, style: int) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    for stiff, natural in _EXAMPLES[style % len(_EXAMPLES)]:
        messages += _exchange(_INSTRUCTION.format(stiff), natural)
    return [*messages, {"role": "user", "content": _INSTRUCTION.format(echo)}]


def _answered_from_text(
    drafts: list[tuple[str, SpanQuestion]],
    reading: Reading,
    sampler: Sampler,
    dropped: Counter[str],
) -> list[WrittenQuestion]:
    """Those that the model, shown the sentence again, answers with the span."""
    if not drafts:
        return []
    replies = sampler.chat(
        [
            [{"role": "user", "content": open_book(source.sentence.text, prompt)}]
            for prompt, source in drafts
        ],
        SamplingParams(max_tokens=_REPLY_TOKENS, stop=("\n",)),
    )
    kept = []
    for (prompt, source), raw in zip(drafts, replies, strict=True):
        reply = raw.strip()
        if not _is_answered(reply, prompt, source):
            dropped["answered otherwise"] += 1
        elif is_inventive(reply, reading):
            dropped["answered with inventions"] += 1
        else:
            is_grounded = reply.endswith(".") and not is_foreign(reply, reading)
            kept.append(WrittenQuestion(prompt, source, reply if is_grounded else None))
    return kept


def _is_answered(reply: str, prompt: str, question: SpanQuestion) -> bool:
    """The answer is there, and no other span of the sentence that the question did not name.

    A reply that tells the whole sentence would answer any question, so it shows nothing.
    """
    return is_correct(reply, [question.answer]) and not any(
        is_correct(reply, [other.text])
        for other in question.sentence.spans
        if not is_correct(f"{question.answer} {prompt}", [other.text])
    )


def _exchange(user: str, assistant: str) -> list[ChatMessage]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
