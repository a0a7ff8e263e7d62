"""Where the commands write, and how they fail: one red line with the remedy, no traceback."""

from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from server.core.errors import AppError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class Failure(Exception):
    """A command could not do its work; the message says why and what to do."""


class CommandGroup(TyperGroup):
    """The top-level command: turns expected errors into a line and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Failure, AppError) as error:
            message = str(error)
        except SettingsError as error:  # names the group and not the value
            message = f"{error}: a list or a group is written as JSON; see .env.example."
        except ValidationError as error:
            message = _wrong_setting(error)
        err.print(f"[red]{escape(message)}[/]", soft_wrap=True)
        ctx.exit(1)


def _wrong_setting(error: ValidationError) -> str:
    """The first setting that does not fit, by the name of its variable; never its value."""
    first = error.errors(include_input=False)[0]
    name = "EVERLEARN_" + "__".join(str(part).upper() for part in first["loc"])
    return f"{name} does not fit: {first['msg']}. .env.example lists every setting."
