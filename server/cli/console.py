"""Where the commands write, and how they fail: one red line with the remedy, no traceback."""

from typing import Any

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
            err.print(f"[red]{escape(str(error))}[/]", soft_wrap=True)
            ctx.exit(1)
