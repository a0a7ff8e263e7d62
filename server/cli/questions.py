"""`everlearn questions`: what is asked about a document in exams."""

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Column, Table

from server.cli.client import connect
from server.cli.console import Failure, out

app = typer.Typer(help="Questions about a document, asked in exams.", no_args_is_help=True)

_AT_ONCE = 500

Document = Annotated[str, typer.Argument(help="Id of the document; see `everlearn documents`.")]


@app.command()
def add(
    document: Document,
    file: Annotated[
        Path | None,
        typer.Argument(
            help='JSON list, or JSON lines, of {"question": …, "answers": […], "grader": …}.'
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(help="One question, in place of a file.")] = None,
    answer: Annotated[
        list[str] | None, typer.Option(help="What counts as right; may be repeated.")
    ] = None,
    grader: Annotated[
        str, typer.Option(help="How replies are judged: match, numeric, exact or judge.")
    ] = "match",
) -> None:
    """Add questions: only ever asked, never taught."""
    if (file is None) == (question is None):
        raise Failure("Give either a FILE or --question with --answer.")
    if file is not None:
        rows = read_questions(file)
    else:
        if not answer:
            raise Failure("Say what counts as right: --answer.")
        rows = [{"question": question, "answers": answer, "grader": grader}]
    with connect() as api:
        new = sum(
            api.post(_path(document), rows[start : start + _AT_ONCE])["new"]
            for start in range(0, len(rows), _AT_ONCE)
        )
    known = f", {len(rows) - new} were there already" if new < len(rows) else ""
    out.print(f"{new} added{known}.")


@app.command("list")
def show(
    document: Document,
    limit: Annotated[int, typer.Option(help="How many are listed.")] = 100,
) -> None:
    """The questions on a document, newest first."""
    with connect() as api:
        rows: list[dict[str, Any]] = api.get(_path(document), limit=limit)["data"]
    if not rows:
        out.print("No question yet. A run writes some by itself, and you may add your own.")
        return
    table = Table(
        Column("question", no_wrap=True), "from", "split", "grader", "asks", "answers", box=None
    )
    for row in rows:
        answers = " | ".join(row["answers"])
        table.add_row(
            row["id"],
            row["kind"],
            row["split"],
            row["grader"],
            escape(row["question"]),
            escape(answers),
        )
    out.print(table)


@app.command()
def remove(
    document: Document,
    question: Annotated[str, typer.Argument(help="Id of the question.")],
) -> None:
    """Take one question out of all exams from now on."""
    with connect() as api:
        api.delete(f"{_path(document)}/{quote(question, safe='')}")
    out.print(f"{question} is asked no more.")


def _path(document: str) -> str:
    return f"/api/v1/documents/{quote(document, safe='')}/questions"


def read_questions(path: Path) -> list[Any]:
    """A JSON list, one object, or an object on each line.

    Raises:
        Failure: it cannot be read, or holds none.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"Cannot read {path}: {error}.") from None
    try:
        value = json.loads(text)
    except ValueError:
        value = [_line(path, number, line) for number, line in enumerate(text.split("\n"), 1)]
        value = [row for row in value if row is not None]
    rows = value if isinstance(value, list) else [value]
    if not rows:
        raise Failure(f"{path} holds no question.")
    return rows


def _line(path: Path, number: int, line: str) -> Any:
    if not line.strip():
        return None
    try:
        return json.loads(line)
    except ValueError as error:
        raise Failure(
            f"{path} is neither valid JSON nor JSON lines: line {number}: {error}."
        ) from None
