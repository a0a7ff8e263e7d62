"""`everlearn audit`: what admins did."""

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from server.cli.client import connect
from server.cli.console import out


def audit(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many are listed.")] = 50,
    after: Annotated[
        str | None, typer.Option(help="Go on behind this event: the id that a page ended with.")
    ] = None,
    deletion: Annotated[
        str | None, typer.Option(help="Only what followed from this deletion.")
    ] = None,
) -> None:
    """What admins did, newest first: keys, promotions, runs, deletions."""
    with connect() as api:
        page = api.get("/api/v1/audit", limit=limit, after=after, deletion=deletion)
    table = Table(Column("when", no_wrap=True), "who", "act", "on", "tenant", "detail", box=None)
    for event in page["data"]:
        table.add_row(
            event["created_at"][:19],
            escape(event["actor"]),
            event["action"],
            escape(event["target"]),
            escape(event["owner"] or ""),
            escape(json.dumps(event["detail"])) if event["detail"] else "",
        )
    out.print(table)
    if page["next"]:
        out.print(f"There are more: everlearn audit --after {page['next']}", soft_wrap=True)
