"""`everlearn prompts`: prompts to learn from; send them, see them, forget one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Column, Table

from server.cli import deletions
from server.cli.client import connect
from server.cli.console import Failure, out

app = typer.Typer(help="Prompts to learn from.", no_args_is_help=True)

_PATH = "/api/v1/prompts"
_BATCH = 500
_BATCH_CHARS = 200_000
"""A character may be several bytes, and the route takes 1 MiB."""
_SHOWN_CHARS = 60

PromptId = Annotated[str, typer.Argument(metavar="ID", help="The prompt's id.")]


@app.command()
def add(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSON lines: {"prompt": …} or {"messages": […]}, with "answers", "tests" and "tag" '
            "where there are any; or plain text, a prompt on each line."
        ),
    ],
    tag: Annotated[str | None, typer.Option(help="The tag of those that name none.")] = None,
) -> None:
    """Send prompts. Nothing is learnt until a policy is due, or you ask: `everlearn learn --method`."""
    rows = _read(file)
    for row in rows:
        if tag is not None:
            row.setdefault("tag", tag)
    created = held_out = 0
    with connect() as api:
        for batch in _batches(rows):
            sent = api.post(_PATH, {"prompts": batch})
            created += sent["created"]
            held_out += sum(each["split"] == "gate" for each in sent["data"])
    out.print(f"{len(rows)} prompts: {created} new, {held_out} held out for exams.")


@app.command("list")
def list_prompts(
    tag: Annotated[str | None, typer.Option(help="Only those of this tag.")] = None,
    limit: Annotated[int, typer.Option(help="How many are listed.")] = 20,
) -> None:
    """What was sent to learn from."""
    with connect() as api:
        rows = api.get(_PATH, tag=tag, limit=limit)["data"]
    if not rows:
        out.print("No prompt yet. Send some: `everlearn prompts add FILE`.")
        return
    table = Table(Column("prompt", no_wrap=True), "split", "tag", "asks", "known to", box=None)
    for row in rows:
        asked = " ".join(row["messages"][-1]["content"].split())
        table.add_row(
            row["id"],
            row["split"],
            escape(row["tag"] or ""),
            escape(asked[:_SHOWN_CHARS]),
            ", ".join(row["versions"]),
        )
    out.print(table)


@app.command()
def show(prompt_id: PromptId) -> None:
    """One prompt: its words, answers and versions."""
    with connect() as api:
        row = api.get(f"{_PATH}/{quote(prompt_id, safe='')}")
    out.print(f"[bold]{row['id']}[/]  {row['split']}  {escape(row['tag'] or '')}")
    for message in row["messages"]:
        out.print(f"  {message['role']}: {message['content']}", markup=False)
    if row["answers"]:
        out.print(f"  Right is: {' | '.join(row['answers'])}", markup=False)
    if row["versions"]:
        out.print(f"  Versions whose run took it: {', '.join(row['versions'])}.")


@app.command()
def forget(
    prompt_id: PromptId,
    rebuild: deletions.Rebuild = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is done, or stuck.")] = False,
) -> None:
    """Forget a prompt's words. With --rebuild what serves is made again without it."""
    deletions.forget(deletions.Kind.PROMPT, prompt_id, rebuild=rebuild, wait=wait)


def _batches(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        chars = len(json.dumps(row, ensure_ascii=False))
        if batch and (len(batch) == _BATCH or size + chars > _BATCH_CHARS):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += chars
    yield batch


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise Failure(f"Cannot read {file}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise Failure(f"{file} is not UTF-8 text. Convert it first.") from None
    is_json = file.suffix in (".jsonl", ".json", ".ndjson")
    rows = [
        _row(file, number, line) if is_json else {"prompt": line}
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not rows:
        raise Failure(f"{file} holds no prompt.")
    return rows


def _row(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Failure(
            f"{file}, line {number}, is not valid JSON: {error}. Write one object on each line."
        ) from None
    if isinstance(row, str):
        return {"prompt": row}
    if not isinstance(row, dict):
        raise Failure(f"{file}, line {number}, is no object with prompt or messages.")
    return row
