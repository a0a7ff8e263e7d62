"""What teacher and student are asked when one model, shown more, teaches itself: distillation.

The teacher sees a text or a correction before the question, the student the question alone.
"""

from collections.abc import Sequence

from adapters.evaluation.open_book import open_book
from adapters.types import ChatMessage, Distillation


def student_prompt(question: str) -> tuple[ChatMessage, ...]:
    """What the student is asked: the question alone."""
    return ({"role": "user", "content": question},)


def teacher_prompt(question: str, context: str) -> tuple[ChatMessage, ...]:
    """What the teacher is asked: the question behind a text that answers it."""
    return ({"role": "user", "content": open_book(context, question, form="one short sentence")},)


def corrected_prompt(messages: Sequence[ChatMessage], correction: str) -> tuple[ChatMessage, ...]:
    """What the teacher is asked: the same conversation, a correction shown in its last turn."""
    last = messages[-1]
    shown = open_book(correction, last["content"], form="the words of the text")
    return (*messages[:-1], {**last, "content": shown})


def distillation(
    question: str, context: str, reply: str, document_id: str | None = None
) -> Distillation:
    """A reply to a question, to be learnt as the one who sees `context` would say it."""
    return Distillation(
        student_prompt(question), teacher_prompt(question, context), reply, document_id
    )
