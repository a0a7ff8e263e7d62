"""The self-edit of a task: which augmentations and which training settings, as validated JSON.

The model's choice in SEAL's few-shot setting (Zweiger et al., arXiv 2506.10943, section 4.2),
with colours added and bounds on every number.
"""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from adapters.task_prompts import task_prompt
from adapters.types import Task

_MOST_SHOWN_CHARS = 4000


class InvalidEdit(ValueError):
    """A reply that holds no self-edit; the message is the reason in few words."""


class _Choice(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Augmentations(_Choice):
    """What is made of the examples beside themselves."""

    basic: StrictBool
    """Grids: rotations, flips, transposes. Texts: white space and case of the input."""
    size: StrictBool
    """Grids: every cell doubled. Texts: prompts that show one example fewer."""
    chained: StrictBool
    """Two of the others one after the other."""
    repeated: StrictBool
    """Grids: laid side by side twice. Texts: the examples shown in another order."""
    colours: StrictBool = False
    """Grids: colours 1 to 9 exchanged. Texts: nothing."""


class TrainingChoice(_Choice):
    """How it is trained."""

    loss_on: Literal["all", "output"]
    """`output`: the reply alone. `all`: the same, and prompt with reply as one plain text beside."""
    learning_rate: Annotated[float, Field(ge=1e-6, le=5e-3)]
    """Peak of the schedule."""
    epochs: Annotated[int, Field(ge=1, le=20, strict=True)]
    """Passes over the augmented examples."""


class FewShotEdit(_Choice):
    """One self-edit."""

    augmentations: Augmentations
    training: TrainingChoice


def edit_prompt(task: Task) -> str:
    """What the model is asked: the task, the tools, and the form of the answer."""
    shown = task_prompt(task, task.examples, "?")[:_MOST_SHOWN_CHARS]
    kinds = "\n".join(
        f"- {name}: {field.description}" for name, field in Augmentations.model_fields.items()
    )
    return (
        f"A model will be trained on this task:\n\n{shown}\n\n"
        "Choose how. More training examples are made of the given ones by:\n"
        f"{kinds}\n"
        'The loss is taken on "all" tokens or on the "output" alone. The learning rate lies '
        "between 0.000001 and 0.005, epochs between 1 and 20.\n"
        "Answer with JSON of this form and nothing else:\n"
        '{"augmentations": {"basic": true, "size": false, "chained": false, "repeated": false, '
        '"colours": false}, "training": {"loss_on": "output", "learning_rate": 0.0005, '
        '"epochs": 3}}'
    )


def read_edit(reply: str) -> tuple[FewShotEdit, bool]:
    """The self-edit of a reply, and whether it had to be cut out of other words first.

    Raises:
        InvalidEdit: there is none, or it is not of the form.
    """
    text = reply.strip()
    try:
        value, is_repaired = json.loads(text), False
    except ValueError:
        value, is_repaired = _first_object(text), True
    except RecursionError as error:
        raise InvalidEdit("no JSON") from error
    try:
        return FewShotEdit.model_validate(value), is_repaired
    except ValidationError as error:
        # Where it is wrong, in our words only: the model's may be the task's, and reports keep reasons.
        place = ".".join(map(str, error.errors()[0]["loc"])) or "the whole"
        if error.errors()[0]["type"] == "extra_forbidden":
            place = "a field too many"
        raise InvalidEdit(f"not of the form: {place}") from error


def _first_object(text: str) -> object:
    start = text.find("{")
    if start < 0:
        raise InvalidEdit("no JSON")
    try:
        value: object = json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError) as error:
        raise InvalidEdit("no JSON") from error
    return value
