"""How a task is put to a model: the same words in lessons, in the exam, and in its users' requests."""

from collections.abc import Sequence

from adapters.types import ExamItem, Example, Grader, ItemKind, Task, build_item

_DEFAULT_INSTRUCTION = {
    "text": "Write the output for the last input, as the examples show. Write nothing else.",
    "grid": (
        "One rule turns each input grid into its output grid. Write the output grid for the last "
        "input: one line for each row, a space between the cells, nothing else."
    ),
}
CHARS_PER_TOKEN = {"text": 2, "grid": 1}
"""Low on purpose: what is said to fit must fit, whatever the tokenizer makes of it."""

_PLACES = 64
"""Tokens kept free for the chat template and the end."""


def room_of(task: Task, max_tokens: int) -> int:
    """Characters of prompt and output together that surely fit into `max_tokens`."""
    return max(0, max_tokens - _PLACES) * CHARS_PER_TOKEN[task.form]


def input_key(text: str, form: str) -> str:
    """By which two inputs of a task are one: texts but for white space and case, grids line by line."""
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    return "\n".join(lines) if form == "grid" else " ".join(" ".join(lines).split()).casefold()


def task_prompt(task: Task, shown: Sequence[Example], asked: str) -> str:
    """The instruction, the examples that are shown, and the input that is asked."""
    parts = [task.instruction.strip() or _DEFAULT_INSTRUCTION[task.form]]
    parts += [f"Input:\n{example.input}\nOutput:\n{example.output}" for example in shown]
    return "\n\n".join([*parts, f"Input:\n{asked}\nOutput:"])


def fitting_prompt(task: Task, shown: Sequence[Example], asked: str, *, room: int) -> str | None:
    """The prompt with as many of the examples as fit into `room` characters, the first ones.

    None when the input alone does not fit. `room` has no place for the output: take it off first.
    """
    for count in range(len(shown), -1, -1):
        prompt = task_prompt(task, shown[:count], asked)
        if len(prompt) <= room:
            return prompt
    return None


def exam_items(task: Task, *, shown: int, max_tokens: int) -> list[ExamItem]:
    """The task's tests, each asked once and as a user would ask it; the same id for the same test.

    A test in rotated or recoloured forms would not be further evidence: its forms stand and fall
    together, and training has seen the augmentations. So a task has as many items as tests.
    """
    room = room_of(task, max_tokens) - longest_output(task)
    items: dict[str, ExamItem] = {}
    for test in task.tests:
        prompt = fitting_prompt(task, task.examples[:shown], test.input, room=room)
        item = build_item(
            ItemKind.TASK,
            task.id,
            prompt=prompt or task_prompt(task, (), test.input),
            answers=(test.output,),
            grader=Grader.EXACT,
        )
        items.setdefault(item.id, item)  # two that differed in a secret alone are one by now
    return list(items.values())


def longest_output(task: Task) -> int:
    """Characters of the longest output among examples and tests; never fewer than tokens."""
    return max((len(each.output) for each in (*task.examples, *task.tests)), default=0)
