"""`everlearn runs`: list them, look at one, follow it, cancel it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from server.cli.client import Api, connect
from server.cli.console import Failure, out
from server.cli.documents import finish
from server.cli.progress import STAGES, follow, print_outcome


def runs(
    run_id: Annotated[str | None, typer.Argument(help="One run; without it: all.")] = None,
    following: Annotated[bool, typer.Option("--follow", help="Watch it to its end.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop it.")] = False,
    report: Annotated[bool, typer.Option("--report", help="What its exam found.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the report to this file, as one HTML page.")
    ] = None,
    limit: Annotated[int, typer.Option(help="How many are listed.")] = 20,
) -> None:
    """What was learnt, and what is being learnt now."""
    with connect() as api:
        if run_id is None:
            if following or cancel or report or html:
                raise Failure("Name the run: `everlearn runs ID`. `everlearn runs` lists them.")
            _print_list(api.get("/api/v1/runs", limit=limit)["data"])
        elif cancel:
            run = api.post(f"/api/v1/runs/{run_id}/cancel")
            out.print(f"{run['id']}  {run['status']}, cancel requested")
        elif report or html:
            _report(api, run_id, html)
        elif following:
            finish(follow(api, run_id, out))
        else:
            _print_run(api.get(f"/api/v1/runs/{run_id}"))


def _print_list(rows: list[dict[str, Any]]) -> None:
    if not rows:
        out.print("No run yet. Send a document: `everlearn ingest FILE`.")
        return
    table = Table(Column("run", no_wrap=True), "status", "verdict", "version", "created", box=None)
    for row in rows:
        table.add_row(
            row["id"],
            _stage(row) if row["status"] == "running" else row["status"],
            row["verdict"] or ("rebuild" if row.get("rebuilds") else ""),
            row["version"] or row.get("rebuilds") or "",
            _moment(row["created_at"]),
        )
    out.print(table)


def _print_run(run: dict[str, Any]) -> None:
    out.print(f"[bold]{run['id']}[/]  {run['status']}  {_stage(run)}")
    out.print(f"  adapter {run['adapter']}, method {run['method']}, attempt {run['attempt']}")
    what = "a task" if run.get("tasks") else f"{len(run['documents'])} documents"
    if run.get("material"):
        what = f"{len(run['prompts'])} prompts sent, {run['interactions']} of traffic"
    out.print(f"  asked for by {escape(run['requested_by'])}, {what}")
    if reason := run.get("reason"):
        out.print(f"  {run['method']}: {reason['why']}", markup=False)
        for name, why in reason["rejected"].items():
            out.print(f"    not {name}: {why}", markup=False)
    for name, seconds in run["report"].get("seconds", {}).items():
        out.print(f"  {STAGES.get(name, name):<11} {seconds:7.1f} s")
    if run["finished_at"]:
        print_outcome(run, out)


def _report(api: Api, run_id: str, html: Path | None) -> None:
    if html is not None:
        try:
            html.write_text(api.text(f"/api/v1/runs/{run_id}/report.html"))
        except OSError as error:
            raise Failure(f"{html} cannot be written ({error}); name another file.") from None
        out.print(f"Written: {html}", markup=False)
        return
    found = api.get(f"/api/v1/runs/{run_id}/report")
    if not found["run"]["finished_at"]:
        raise Failure(
            f"{run_id} is {found['run']['status']}; its report comes with its end: "
            f"`everlearn runs {run_id} --follow`."
        )
    print_outcome(found["run"], out)
    if not found["exam"].get("slices"):
        return
    table = Table("slice", "items", "champion", "challenger", "95 %", "verdict", box=None)
    for row in found["exam"]["slices"]:
        low, high = row["interval"]
        counts = (str(row[name]) for name in ("items", "champion", "challenger"))
        table.add_row(escape(row["name"]), *counts, f"{low:+.2f} {high:+.2f}", row["verdict"] or "")
    out.print(table)


def _moment(stamp: str) -> str:
    """Date and minute of an ISO stamp (UTC), short enough for a table."""
    return stamp[5:16].replace("T", " ")


def _stage(run: dict[str, Any]) -> str:
    if not run["stage"]:
        return ""
    steps = f" {run['done']}/{run['total']}" if run["total"] else ""
    return f"{STAGES.get(run['stage'], run['stage'])}{steps}"
