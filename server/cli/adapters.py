"""`everlearn adapters`, `promote` and `rollback`: which version answers, and moving that."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from server.cli.client import Api, connect
from server.cli.console import Failure, out

Name = Annotated[str | None, typer.Argument(help="The adapter line; else the only one.")]
Reason = Annotated[str, typer.Option(help="Kept with the event.")]
Expect = Annotated[
    int | None,
    typer.Option(help="The line's revision that you have seen; refused if it has moved since."),
]


def show_all() -> None:
    """The versions of each line, who serves, and of the only line every move so far."""
    with connect() as api:
        lines = _lines(api)
    for line in lines:
        print_line(line, with_events=len(lines) == 1)


def promote(
    name: Name = None,
    to: Annotated[str, typer.Option(help="v2, 2 or base.")] = "",
    reason: Reason = "",
    expect: Expect = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also one that was rejected, or never examined.")
    ] = False,
) -> None:
    """Let a version that passed its exam answer from now on."""
    if not to:
        raise Failure("Say where to: `everlearn promote --to v2`. `everlearn adapters` lists them.")
    with connect() as api:
        line = name or only_line(api)
        body = {"version": to, **_order(reason, expect), **({"force": True} if force else {})}
        _print_move(api.post(f"/api/v1/adapters/{line}/promote", body))


def rollback(
    name: Name = None,
    to: Annotated[str | None, typer.Option(help="v1, 1 or base; else what served before.")] = None,
    reason: Reason = "",
    expect: Expect = None,
) -> None:
    """Go back to what answered before."""
    with connect() as api:
        line = name or only_line(api)
        body = _order(reason, expect) | ({"to": to} if to else {})
        _print_move(api.post(f"/api/v1/adapters/{line}/rollback", body))


def _order(reason: str, expect: int | None) -> dict[str, Any]:
    return {"reason": reason} | ({} if expect is None else {"expected_revision": expect})


def _lines(api: Api) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = api.get("/api/v1/adapters")["data"]
    return rows


def only_line(api: Api) -> str:
    """The line that is meant where none is named: the one that serves, whatever tasks have theirs.

    Raises:
        Failure: there are several, or none.
    """
    names = [line["name"] for line in _lines(api) if line.get("role", "serve") == "serve"]
    if len(names) != 1:
        raise Failure(f"Name the adapter: {', '.join(names) or 'there is none yet'}.")
    return str(names[0])


def print_line(line: dict[str, Any], *, with_events: bool) -> None:
    out.print(
        f"[bold]{line['name']}[/]  base model {line['base_model']}, revision {line['revision']}"
    )
    aliases: dict[str, list[str]] = {}
    for alias, version in line["aliases"].items():
        aliases.setdefault(version, []).append(alias)
    table = Table("version", "status", "serves as", "documents", "exam", "created", box=None)
    base = f"{line['name']}@base"
    table.add_row(base, "", _marked(aliases, base), "", "", "")
    for version in sorted(line["versions"], key=lambda row: row["number"]):
        table.add_row(
            version["name"],
            version["status"],
            _marked(aliases, version["name"]),
            str(len(version["documents"])),
            (version["exam"] or {}).get("verdict", ""),
            version["created_at"][:19],
        )
    out.print(table)
    if with_events:
        print_moves(line["events"])


def print_moves(events: list[dict[str, Any]]) -> None:
    """Every move of a line's aliases, newest first; nothing where there was none."""
    if not events:
        return
    moves = Table("when", "move", "from", "to", "by", "reason", box=None)
    for event in events:
        moves.add_row(
            event["created_at"][:19],
            event["kind"],
            event["from_version"],
            event["to_version"],
            escape(event["actor"]),
            escape(event["reason"]),
        )
    out.print()
    out.print(moves)


def _marked(aliases: dict[str, list[str]], version: str) -> str:
    return " ".join(f"[green]{alias}[/]" for alias in aliases.get(version, []))


def _print_move(move: dict[str, Any]) -> None:
    out.print(
        f"{move['adapter']}@{move['alias']}: {move['from_version']} → "
        f"[bold]{move['to_version']}[/]  ({move['kind']}, {move['moved_in_ms']} ms, "
        f"revision {move['revision']})"
    )
    if move["skipped"]:
        out.print(f"Stepped over, because they cannot serve again: {', '.join(move['skipped'])}.")
