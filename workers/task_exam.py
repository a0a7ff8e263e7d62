"""The exam of a task: its tests, each asked once."""

from adapters.spec import FewShotConfig, MethodConfig
from adapters.task_prompts import exam_items, longest_output
from adapters.types import ExamItem
from workers.material import Material


def task_items(material: Material, config: MethodConfig) -> list[ExamItem]:
    """What a run's tasks are examined with; the same for every attempt.

    Raises:
        ValueError: the method is not one for tasks.
    """
    if not material.tasks:
        return []
    if not isinstance(config, FewShotConfig):
        raise ValueError(f"{config.type} learns no tasks")
    max_tokens = config.training.max_tokens
    return [
        item
        for task in material.tasks
        for item in exam_items(task, shown=config.shown, max_tokens=max_tokens)
    ]


def longest_answer(material: Material, config: MethodConfig) -> int:
    """Tokens that the exam's longest answer may need: as many as the longest output has characters."""
    return max([config.exam.max_new_tokens, *map(longest_output, material.tasks)])
