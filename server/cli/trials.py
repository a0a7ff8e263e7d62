"""`everlearn trial`: try a version on live traffic, look at it, say yes or no."""

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from server.cli.adapters import Name, Reason, only_line
from server.cli.client import connect
from server.cli.console import Failure, out

app = typer.Typer(help="Trials: a version beside the champion.", no_args_is_help=True)


class Mode(StrEnum):
    """How the version meets live traffic."""

    SHADOW = "shadow"
    CANARY = "canary"


@app.command()
def start(
    name: Name = None,
    version: Annotated[str, typer.Option(help="Which one: v2 or 2.")] = "",
    mode: Annotated[
        Mode, typer.Option(help="canary answers a share of the requests; shadow gets copies.")
    ] = Mode.CANARY,
    share: Annotated[
        float | None, typer.Option(help="Percent of the requests. Default: the line's own.")
    ] = None,
    reason: Reason = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also a version that failed its exam.")
    ] = False,
) -> None:
    """Try a version; the judge promotes or aborts it by itself."""
    if not version:
        raise Failure("Say which: `everlearn trial start --version v2`; see `everlearn adapters`.")
    body = {"version": version, "mode": str(mode), "reason": reason, "force": force}
    if share is not None:
        body["share"] = share
    with connect() as api:
        line = name or only_line(api)
        _print(api.post(f"/api/v1/adapters/{line}/trial", body))


@app.command()
def show(
    name: Name = None,
    all_trials: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
) -> None:
    """The trial that runs or waits, with what the judge has seen."""
    with connect() as api:
        line = name or only_line(api)
        if not all_trials:
            _print(api.get(f"/api/v1/adapters/{line}/trial"))
            return
        for trial in api.get(f"/api/v1/adapters/{line}/trials")["data"]:
            _print(trial)


@app.command()
def abort(name: Name = None) -> None:
    """End the trial without a promotion."""
    with connect() as api:
        _print(api.delete(f"/api/v1/adapters/{name or only_line(api)}/trial"))


@app.command()
def approve(name: Name = None, reason: Reason = "") -> None:
    """Say yes to the version that waits: it serves from now on."""
    with connect() as api:
        line = name or only_line(api)
        _print(api.post(f"/api/v1/adapters/{line}/trial/approve", {"reason": reason}))


def _print(trial: dict[str, Any]) -> None:
    share = "" if trial["mode"] == "hold" else f", {trial['share']:g} %"
    out.print(
        f"[bold]{trial['version']}[/] against {trial['champion']}: {trial['mode']}{share}, "
        f"[bold]{trial['state']}[/] since {trial['created_at'][:19]}"
    )
    if trial["outcome"]:
        out.print(f"  {escape(trial['outcome'])}  ({escape(trial['ended_by'] or 'the judge')})")
    if not trial["evidence"]:
        return
    table = Table("signal", "pairs", "challenger", "champion", "harm e", "safe e", box=None)
    for signal, found in trial["evidence"].items():
        table.add_row(
            signal,
            str(found["pairs"]),
            _percent(found["challenger"]),
            _percent(found["champion"]),
            f"{found['harm_e']:.3g}",
            f"{found['safe_e']:.3g}",
        )
    out.print(table)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
