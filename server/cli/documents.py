"""`everlearn ingest`, `learn` and `documents`: give it something to learn, see it, take it back."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from server.cli.client import Api, connect
from server.cli.console import Failure, out
from server.cli.progress import follow, wait_for_run
from server.cli.questions import read_questions

_PATH = "/api/v1/documents"
_BATCH_FILES = 100
_BATCH_BYTES = 40 * 1024 * 1024
"""Of one form; a single file may be larger, and the server says whether it is too large."""
_ENDINGS = (".txt", ".md", ".markdown", ".html", ".htm", ".pdf", ".docx")
"""Of the files that are taken out of a folder."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the server made of the files."""

    documents: list[dict[str, Any]]
    refused: list[str]
    """A line each."""


Wait = Annotated[bool, typer.Option("--wait", help="Follow the run to its end.")]


def ingest(
    files: Annotated[
        list[str],
        typer.Argument(help="Text, Markdown, HTML, PDF, DOCX; folders; or - for standard input."),
    ],
    title: Annotated[str | None, typer.Option(help="Title of the one file; else its own.")] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            help='JSON list, or JSON lines, of {"question": …, "answers": […]}: asked in the exam, '
            "never taught."
        ),
    ] = None,
    wait: Wait = False,
) -> None:
    """Send documents. The server learns them by itself within seconds."""
    paths = [] if files == ["-"] else _found(files)
    if len(paths) > 1 and (title or questions):
        raise Failure("--title and --questions are for one file; send that file alone.")
    fields: dict[str, Any] = {} if title is None else {"title": title}
    if questions is not None:
        fields["questions"] = read_questions(questions)
    with connect() as api:
        if not paths:
            sent = Sent([api.post(_PATH, {"text": _read_text(), **fields})], [])
        else:
            sent = _send(api, paths, fields)
        for document in sent.documents:
            known = f", known to {', '.join(document['versions'])}" if document["versions"] else ""
            out.print(
                f"{document['id']}  {escape(document['title'])}  ({document['state']}{known})"
            )
        if sent.refused:
            raise Failure("Not taken:\n" + "\n".join(sent.refused))
        if wait:
            _follow_document(api, sent.documents[-1]["id"])


def learn(
    adapter: Annotated[str | None, typer.Argument(help="The line; else the model's own.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="How: a method's name, or auto; else the settings' method, on documents."
        ),
    ] = None,
    tag: Annotated[
        str | None, typer.Option(help="Only prompts of this tag, where it learns from prompts.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="What is to differ from the settings of the method, such as strength=0.7 or "
            "training.epochs=5; as often as needed.",
        ),
    ] = None,
    wait: Wait = False,
) -> None:
    """Start a run now: over all documents, or over prompts or feedback by a method of those."""
    material = {"tag": tag} if tag else None
    config = _config(changes or [])
    asked = {"adapter": adapter, "method": method, "material": material, "config": config}
    with connect() as api:
        run = api.post("/api/v1/runs", {name: value for name, value in asked.items() if value})
        out.print(f"{run['id']}  {run['method']}  {run['status']}")
        if reason := run.get("reason"):
            out.print(f"  {reason['why']}", markup=False)
        if wait:
            finish(follow(api, run["id"], out))


def _config(changes: list[str]) -> dict[str, Any]:
    """`a.b=1` is ``{"a": {"b": 1}}``; a value that is no JSON is a word."""
    config: dict[str, Any] = {}
    for change in changes:
        path, is_set, value = change.partition("=")
        *outer, name = path.split(".")
        if not is_set or not all([*outer, name]):
            raise Failure(f"--set takes NAME=VALUE, such as strength=0.7; not {change!r}.")
        place = config
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise Failure(f"--set {change!r} stands against another --set of {part!r}.")
        if name in place:
            raise Failure(f"--set {path} stands twice.")
        try:
            place[name] = json.loads(value)
        except ValueError:
            place[name] = value
    return config


def show(
    delete: Annotated[str | None, typer.Option(help="Id of one to forget.")] = None,
    release: Annotated[
        str | None, typer.Option(help="Id of one in quarantine, to be learnt all the same.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="Only those in it, such as quarantined.")
    ] = None,
    limit: Annotated[int, typer.Option(help="How many are listed.")] = 20,
) -> None:
    """What it was given to learn, and what is wrong with it; or forget or release one of them."""
    with connect() as api:
        if release is not None:
            document = api.post(f"{_PATH}/{release}/release")
            out.print(f"{document['id']} is released; the next run learns all of it.")
            return
        if delete is None:
            only = {} if state is None else {"state": state}
            _print_list(api.get(_PATH, limit=limit, **only)["data"])
            return
        document = api.delete(f"{_PATH}/{delete}")
        out.print(f"{document['id']} is forgotten.")
        if document["versions"]:
            out.print(f"Versions that saw it still know it: {', '.join(document['versions'])}.")
            out.print(
                f"To replace them: everlearn deletions {document['deletion']['id']} --rebuild"
            )


def _print_list(rows: list[dict[str, Any]]) -> None:
    if not rows:
        out.print("No document yet. Send one: `everlearn ingest FILE`.")
        return
    table = Table(Column("document", no_wrap=True), "state", "title", "known to", box=None)
    for row in rows:
        table.add_row(row["id"], _state(row), escape(row["title"]), ", ".join(row["versions"]))
    out.print(table)


def _state(row: dict[str, Any]) -> str:
    """Its state, with the reason where it will never be learnt as it is."""
    if row["error"]:
        return escape(f"{row['state']}: {row['error']}")
    if row["replaced_by"]:
        return f"replaced by {row['replaced_by']}"
    if row["state"] == "quarantined" and (reasons := _quarantine_reasons(row)):
        return escape(f"{row['state']}: {reasons[0]}")
    if contained := sum(f["severity"] == "contain" for f in row["findings"]):
        return f"{row['state']}, {contained} findings contained"
    return str(row["state"])


def _quarantine_reasons(row: dict[str, Any]) -> list[str]:
    return [f["detail"] for f in row["findings"] if f["severity"] == "quarantine"]


def finish(run: dict[str, Any]) -> None:
    """Exit with 1 when a run did not go to its end."""
    if run["status"] != "succeeded":
        raise typer.Exit(1)


def _follow_document(api: Api, document_id: str) -> None:
    run_id = wait_for_run(api, document_id)
    if run_id is None:
        document = api.get(f"{_PATH}/{document_id}")
        if error := document["error"]:
            raise Failure(f"The document cannot be learnt. {error}")
        if reasons := _quarantine_reasons(document):
            raise Failure(f"The document is quarantined. {' '.join(reasons)}")
        raise Failure(
            "No run has started for this document. If learning by itself is switched off "
            "(EVERLEARN_LEARNING__IS_ENABLED), start one: `everlearn learn --wait`."
        )
    finish(follow(api, run_id, out))


def _found(names: list[str]) -> list[Path]:
    """The files that are named, and those in the folders that are named, in order."""
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in _ENDINGS)
            if not inside:
                raise Failure(f"{name} holds no file that ends in {', '.join(_ENDINGS)}.")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise Failure(f"Cannot read {name}: there is no such file.")
    return paths


def _send(api: Api, paths: list[Path], fields: dict[str, Any]) -> Sent:
    """Forms of as many files as one may hold."""
    sent = Sent([], [])
    form = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
    }
    for batch in _batches(paths):
        files = [("file", (path.name, _read(path))) for path in batch]
        try:
            answer = api.post_form(_PATH, files, form)
        except Failure as failure:
            if len(paths) == 1:
                raise
            sent.refused.append(str(failure))
            continue
        sent.documents.extend(answer["data"])
        for error in answer["errors"]:
            sent.refused.append(f"{batch[error['index']]}: {error['error']['message']}")
    return sent


def _batches(paths: list[Path]) -> Iterator[list[Path]]:
    batch: list[Path] = []
    size = 0
    for path in paths:
        bytes_ = path.stat().st_size
        if batch and (len(batch) == _BATCH_FILES or size + bytes_ > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += bytes_
    yield batch


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Failure(f"Cannot read {path}: {error.strerror}.") from None


def _read_text() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise Failure(
            f"Standard input is not UTF-8 text (byte {error.start}). Convert it first."
        ) from None
