"""Tasks given by examples."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import WithJsonSchema

from server.api.schemas.base import Body, LineName, Text, Title, View

TaskValue = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 0, "maximum": 9},
                    },
                },
            ]
        }
    ),
]
"""A text, or a grid as rows of digits; checked with the task, so that errors say what helps."""


class PairBody(Body):
    input: TaskValue
    output: TaskValue
    """What the model should answer, exactly."""


class TaskBody(Body):
    title: Title | None = None
    """For people; the instruction's first line when left out."""
    instruction: Text = ""
    """What is to be done, in words; the examples may speak for themselves."""
    form: Literal["text", "grid"] | None = None
    """Grids are rows of digits; told by the examples when left out."""
    examples: list[PairBody] | None = None
    """What is taught."""
    tests: list[PairBody] | None = None
    """Only ever asked; when left out, one example in three becomes a test."""
    train: list[PairBody] | None = None
    """ARC's word for ``examples``."""
    test: list[PairBody] | None = None
    """ARC's word for ``tests``."""
    name: Title | None = None
    """ARC's word for ``title``."""


class LearnTaskBody(Body):
    adapter: LineName | None = None
    """The line that learns it, made where it is not there; one of the task's own when left out."""


class TaskView(View):
    id: str
    owner: str | None
    title: str
    form: str
    """text or grid."""
    state: str
    """ready, learning, learnt or not_learnt."""
    adapter: str
    """The line that it is learnt on unless another is named."""
    example_count: int
    test_count: int
    versions: list[str]
    """Versions that were trained on it."""
    created_at: datetime
    deleted_at: datetime | None
    """When its examples were forgotten; the row stays for its versions."""


class TaskDetail(TaskView):
    instruction: str
    examples: list[dict[str, str]]
    """Rows of ``input`` and ``output``; grids as lines of digits."""
    tests: list[dict[str, str]]
    prompt: str
    """What to ask the line, with the input in place of ``{input}``: as in lessons and exam."""
