"""`everlearn ingest`, `learn` and `documents`: give it something to learn, see it, take it back."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from server.cli.client import Api, connect
from server.cli.console import Failure, out
from server.cli.progress import follow, wait_for_run

Wait = Annotated[bool, typer.Option("--wait", help="Follow the run to its end.")]


def ingest(
    file: Annotated[str, typer.Argument(help="A UTF-8 text file, or - for standard input.")],
    title: Annotated[str | None, typer.Option(help="Title; else the first line.")] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            help='JSON list of {"question": …, "answers": […]}: asked in the exam, never taught.'
        ),
    ] = None,
    wait: Wait = False,
) -> None:
    """Send a document. The server learns it by itself within seconds."""
    body: dict[str, Any] = {"text": _read_text(file)}
    if title is not None:
        body["title"] = title
    if questions is not None:
        body["questions"] = _read_questions(questions)
    with connect() as api:
        document = api.post("/api/v1/documents", body)
        known = f", known to {', '.join(document['versions'])}" if document["versions"] else ""
        out.print(f"{document['id']}  {escape(document['title'])}  ({document['state']}{known})")
        if wait:
            _follow_document(api, document["id"])


def learn(
    adapter: Annotated[str | None, typer.Argument(help="The line; else the model's own.")] = None,
    wait: Wait = False,
) -> None:
    """Start a run over all documents now."""
    with connect() as api:
        run = api.post("/api/v1/runs", {"adapter": adapter} if adapter else {})
        out.print(f"{run['id']}  {run['status']}")
        if wait:
            finish(follow(api, run["id"], out))


def show(
    delete: Annotated[str | None, typer.Option(help="Id of one to forget.")] = None,
    limit: Annotated[int, typer.Option(help="How many are listed.")] = 20,
) -> None:
    """What it was given to learn; or forget one of them."""
    with connect() as api:
        if delete is None:
            _print_list(api.get("/api/v1/documents", limit=limit)["data"])
            return
        document = api.delete(f"/api/v1/documents/{delete}")
        out.print(f"{document['id']} is forgotten.")
        if document["versions"]:
            out.print(f"Versions that saw it still know it: {', '.join(document['versions'])}.")


def _print_list(rows: list[dict[str, Any]]) -> None:
    if not rows:
        out.print("No document yet. Send one: `everlearn ingest FILE`.")
        return
    table = Table(Column("document", no_wrap=True), "state", "title", "known to", box=None)
    for row in rows:
        table.add_row(row["id"], row["state"], escape(row["title"]), ", ".join(row["versions"]))
    out.print(table)


def finish(run: dict[str, Any]) -> None:
    """Exit with 1 when a run did not go to its end."""
    if run["status"] != "succeeded":
        raise typer.Exit(1)


def _follow_document(api: Api, document_id: str) -> None:
    run_id = wait_for_run(api, document_id)
    if run_id is None:
        raise Failure(
            "No run has started for this document. If learning by itself is switched off "
            "(EVERLEARN_LEARNING__IS_ENABLED), start one: `everlearn learn --wait`."
        )
    finish(follow(api, run_id, out))


def _read_text(file: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return raw.decode()
    except OSError as error:
        raise Failure(f"Cannot read {file}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise Failure(f"{file} is not UTF-8 text (byte {error.start}). Convert it first.") from None


def _read_questions(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise Failure(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise Failure(f"{path} is not valid JSON: {error}.") from None
