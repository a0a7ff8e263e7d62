"""Renders `.env.example` from the settings: `python -m server.core.settings_doc > .env.example`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from server.core.settings import Settings

HEAD = """\
# Every setting of Everlearn with its default. Copy this file to .env and uncomment what you change;
# a variable of the environment wins over the file. Written by `make env-example`; do not edit.
"""


def render_env_example() -> str:
    """The whole file: one commented assignment per setting, under its description."""
    lines = [HEAD]
    for name, description, default in _entries("EVERLEARN_", Settings, None):
        lines += [f"# {description}", f"#{name}={default}", ""]
    return "\n".join(lines)


def _entries(
    prefix: str, model: type[BaseModel], group: BaseModel | None
) -> Iterator[tuple[str, str, str]]:
    """Variable, description and default of each setting; groups are walked into.

    `group` is the default that the outer group has for this one, which may differ from the class's.
    """
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        kind = field.annotation
        default = (
            getattr(group, name)
            if group is not None
            else field.get_default(call_default_factory=True)
        )
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _entries(f"{variable}__", kind, default)
        elif not (
            get_origin(kind) is Literal and len(get_args(kind)) == 1
        ):  # no choice, no setting
            yield variable, " ".join((field.description or "").split()), _written(default)


def _written(default: Any) -> str:
    """A default as one would write it in the file; nothing for "not set"."""
    if default is None:
        return ""
    if isinstance(default, str | Path):
        return str(default)
    if isinstance(default, BaseModel):  # one of several kinds, told apart by `type`
        return default.model_dump_json()
    return json.dumps(default)


if __name__ == "__main__":
    sys.stdout.write(render_env_example())
