"""`everlearn forget` and `deletions`: have something forgotten, and see how far that has come."""

import time
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Column, Table

from server.cli.client import Api, connect
from server.cli.console import Failure, out

_PATH = "/api/v1/deletions"
_LOOK_EVERY_S = 1.0


class Kind(StrEnum):
    """What can be forgotten."""

    DOCUMENT = "document"
    INTERACTION = "interaction"
    TASK = "task"
    PROMPT = "prompt"
    TENANT = "tenant"


_DELETE = {
    Kind.DOCUMENT: "/api/v1/documents/{}",
    Kind.INTERACTION: "/api/v1/interactions/{}",
    Kind.TASK: "/api/v1/tasks/{}",
    Kind.PROMPT: "/api/v1/prompts/{}",
    Kind.TENANT: "/api/v1/tenants/{}/data",
}

Rebuild = Annotated[
    bool, typer.Option("--rebuild", help="Learn again without it, and retire what saw it.")
]


def forget(
    kind: Annotated[Kind, typer.Argument(help="document, interaction, task, prompt or tenant.")],
    name: Annotated[str, typer.Argument(metavar="ID", help="Its id, or the tenant's name.")],
    rebuild: Rebuild = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is done, or stuck.")] = False,
) -> None:
    """Forget a document, an interaction, a task, a prompt, or all that a tenant has sent."""
    path = _DELETE[kind].format(quote(name, safe=""))
    with connect() as api:
        answer = api.delete(f"{path}?rebuild=true" if rebuild else path)
        deletion = answer if kind is Kind.TENANT else answer["deletion"]
        if wait:
            deletion = _follow(api, deletion)
        _print(deletion)
    _exit_if_stuck(deletion)


def show(
    deletion_id: Annotated[
        str | None, typer.Argument(help="One deletion; without it: all.")
    ] = None,
    rebuild: Rebuild = False,
    limit: Annotated[int, typer.Option(help="How many are listed.")] = 20,
) -> None:
    """What was to be forgotten, and how far that has come."""
    with connect() as api:
        if deletion_id is None:
            if rebuild:
                raise Failure("Name the deletion: `everlearn deletions ID --rebuild`.")
            _print_list(api.get(_PATH, limit=limit)["data"])
            return
        path = f"{_PATH}/{quote(deletion_id, safe='')}"
        if rebuild:
            api.post(f"{path}/rebuild")
        deletion = api.get(path)
    _print(deletion)
    table = Table(Column("when", no_wrap=True), "who", "act", "on", box=None)
    for event in deletion["chain"]:
        table.add_row(
            event["created_at"][:19],
            escape(event["actor"]),
            event["action"],
            escape(event["target"]),
        )
    out.print()
    out.print(table)


def _follow(api: Api, deletion: dict[str, Any]) -> dict[str, Any]:
    """The deletion once nothing moves any more by itself."""
    while deletion["state"] == "rebuilding":
        time.sleep(_LOOK_EVERY_S)
        deletion = api.get(f"{_PATH}/{deletion['id']}")
    return deletion


def _print(deletion: dict[str, Any]) -> None:
    target = escape(f"{deletion['kind']} {deletion['target']}")
    out.print(f"[bold]{deletion['id']}[/]  {target}  {deletion['state']}")
    if deletion["versions"] and deletion["state"] != "done":
        out.print(f"  Versions that saw it: {', '.join(deletion['versions'])}.")
    if deletion["runs"]:
        out.print(f"  Runs without it: {', '.join(deletion['runs'])}.")
    if deletion["reason"]:
        out.print(f"  {deletion['reason']}", markup=False)
    if deletion["versions"] and not deletion["is_rebuild"]:
        out.print(f"  To learn again without it: everlearn deletions {deletion['id']} --rebuild")


def _print_list(rows: list[dict[str, Any]]) -> None:
    if not rows:
        out.print("Nothing was deleted yet.")
        return
    table = Table(Column("deletion", no_wrap=True), "state", "what", "versions", "when", box=None)
    for row in rows:
        table.add_row(
            row["id"],
            row["state"],
            escape(f"{row['kind']} {row['target']}"),
            ", ".join(row["versions"]),
            row["created_at"][:19],
        )
    out.print(table)


def _exit_if_stuck(deletion: dict[str, Any]) -> None:
    if deletion["is_rebuild"] and deletion["state"] == "open":
        raise typer.Exit(1)
