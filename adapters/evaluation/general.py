"""The general suite: questions of everyday ability that learning must not damage.

Ours is 40 closed-book items in four slices; an operator may give a file of the same form:
a JSON list of `{"id": "SLICE-NAME", "slice": "SLICE", "prompt": "...", "answers": ["..."]}`.
"""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from adapters.rewards.answers import normalise
from adapters.types import ExamItem, ItemKind

_OURS = Path(__file__).with_name("general_suite.json")


class GeneralSuiteInvalid(ValueError):
    """A suite file cannot be used; the message names the file, the item and the remedy."""


def load_general_suite(path: Path | None = None) -> list[ExamItem]:
    """The items of the suite file at `path`, or of ours, in the order of the file.

    Raises:
        GeneralSuiteInvalid: unreadable, not of the form above, or an id or prompt stands twice.
    """
    path = path or _OURS
    try:
        rows = _ROWS.validate_json(path.read_bytes())
    except OSError as error:
        raise GeneralSuiteInvalid(f"general suite {path} cannot be read ({error})") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"[{part!r}]" for part in first["loc"]) or "the file"
        raise GeneralSuiteInvalid(
            f"general suite {path}: {where}: {first['msg']}; it must be a JSON list of "
            '{"id", "slice", "prompt", "answers"}'
        ) from error
    if not rows:
        raise GeneralSuiteInvalid(f"general suite {path} is empty; give it at least one item")
    seen: set[str] = set()
    for row in rows:
        _check(row, path)
        for key in (f"id {row.id}", f"prompt {row.prompt}"):
            if key in seen:
                raise GeneralSuiteInvalid(f"general suite {path}: {key!r} stands twice; drop one")
            seen.add(key)
    return [ExamItem(r.id, ItemKind.GENERAL, None, r.prompt, r.answers) for r in rows]


def slice_of(item_id: str) -> str:
    """The slice of a general item, which its id begins with: "facts-03" is of "facts"."""
    return item_id.rpartition("-")[0]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str
    slice: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    answers: tuple[str, ...] = Field(min_length=1)


_ROWS = TypeAdapter(list[_Row])


def _check(row: _Row, path: Path) -> None:
    if slice_of(row.id) != row.slice or row.id.endswith("-"):
        raise GeneralSuiteInvalid(
            f"general suite {path}: id {row.id!r} must be {row.slice!r}, a hyphen, and a name "
            f"without hyphens; write it as {json.dumps(row.slice + '-01')}"
        )
    for answer in row.answers:
        if not normalise(answer):
            raise GeneralSuiteInvalid(
                f"general suite {path}: answer {answer!r} of {row.id} can never match; an answer "
                "needs a word or number besides articles"
            )
