"""`everlearn tasks`: tasks given by examples; send one, see them, have one learnt, forget it."""

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Column, Table

from server.cli import deletions
from server.cli.client import connect
from server.cli.console import Failure, out
from server.cli.documents import finish
from server.cli.progress import follow

app = typer.Typer(help="Tasks given by examples.", no_args_is_help=True)

_PATH = "/api/v1/tasks"

TaskId = Annotated[str, typer.Argument(metavar="ID", help="The task's id.")]


@app.command()
def add(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSON: {"examples": [{"input": …, "output": …}], "tests"?, "instruction"?}, '
            "or a file of ARC as it stands."
        ),
    ],
    title: Annotated[str | None, typer.Option(help="Its title; else the file's own name.")] = None,
) -> None:
    """Send a task. It is learnt when you ask for it: `everlearn tasks learn ID`."""
    body = _read(file)
    if title or not (body.get("title") or body.get("name")):
        body["title"] = title or file.stem
    with connect() as api:
        task = api.post(_PATH, body)
    out.print(
        f"{task['id']}  {escape(task['title'])}  ({task['example_count']} examples, "
        f"{task['test_count']} tests, {task['state']})"
    )


@app.command("list")
def list_tasks(
    limit: Annotated[int, typer.Option(help="How many are listed.")] = 20,
) -> None:
    """What it was given by examples."""
    with connect() as api:
        rows = api.get(_PATH, limit=limit)["data"]
    if not rows:
        out.print("No task yet. Send one: `everlearn tasks add FILE.json`.")
        return
    table = Table(Column("task", no_wrap=True), "state", "title", "known to", box=None)
    for row in rows:
        table.add_row(row["id"], row["state"], escape(row["title"]), ", ".join(row["versions"]))
    out.print(table)


@app.command()
def show(task_id: TaskId) -> None:
    """One task: its line, its versions, and the prompt to ask it with."""
    with connect() as api:
        task = api.get(_path(task_id))
    out.print(f"[bold]{task['id']}[/]  {escape(task['title'])}  {task['state']}")
    out.print(
        f"  {task['form']}, {task['example_count']} examples, {task['test_count']} tests; "
        f"line {task['adapter']}"
    )
    if task["versions"]:
        out.print(f"  Versions that saw it: {', '.join(task['versions'])}.")
    if task["prompt"]:
        out.print("  Ask the line with this prompt, the input in place of {input}:\n")
        out.print(task["prompt"], markup=False)


@app.command()
def learn(
    task_id: TaskId,
    adapter: Annotated[
        str | None, typer.Option(help="The line that learns it; else one of its own.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end.")] = False,
) -> None:
    """Learn a task now, on a line of its own."""
    with connect() as api:
        run = api.post(f"{_path(task_id)}/learn", {"adapter": adapter} if adapter else {})
        out.print(f"{run['id']}  {run['status']}  on {run['adapter']}")
        if wait:
            finish(follow(api, run["id"], out))


@app.command()
def forget(
    task_id: TaskId,
    rebuild: deletions.Rebuild = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is done, or stuck.")] = False,
) -> None:
    """Forget a task's examples. With --rebuild the base serves again on its line."""
    deletions.forget(deletions.Kind.TASK, task_id, rebuild=rebuild, wait=wait)


def _path(task_id: str) -> str:
    return f"{_PATH}/{quote(task_id, safe='')}"


def _read(file: Path) -> dict[str, Any]:
    try:
        body = json.loads(file.read_text())
    except OSError as error:
        raise Failure(f"Cannot read {file}: {error.strerror}.") from None
    except ValueError as error:
        raise Failure(f"{file} is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise Failure(
            f"{file} holds no task: send an object with examples, or ARC's train and test."
        )
    return body
