"""`everlearn policies`: which method runs by itself, on what and when; try one without learning."""

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Column, Table

from server.cli.client import connect
from server.cli.console import Failure, out

app = typer.Typer(help="What is learnt by itself, and when.", no_args_is_help=True)

_PATH = "/api/v1/policies"

PolicyId = Annotated[str, typer.Argument(metavar="ID", help="The policy's id.")]
Method = Annotated[str | None, typer.Option(help="A method's name, or auto.")]
Material = Annotated[
    str | None, typer.Option(help="documents, prompts, feedback, or all where auto chooses.")
]
Tag = Annotated[str | None, typer.Option(help="Only prompts of this tag.")]
Count = Annotated[int | None, typer.Option(help="Due from so many new pieces.")]
MaxAge = Annotated[float | None, typer.Option(help="Due when the oldest waited so many hours.")]
Schedule = Annotated[str | None, typer.Option(help="Due by a cron expression, in UTC.")]
Idle = Annotated[float | None, typer.Option(help="Only when nobody asked for so many hours.")]
Cooldown = Annotated[float | None, typer.Option(help="Hours without a run after each.")]
Tokens = Annotated[int | None, typer.Option(help="Most tokens of a run.")]
Steps = Annotated[int | None, typer.Option(help="Most optimiser steps of a run.")]
Seconds = Annotated[float | None, typer.Option(help="Most seconds on the device of a run.")]
File = Annotated[
    Path | None, typer.Option("--file", help="JSON with the fields of the API; options win.")
]


@app.command("list")
def list_policies(
    adapter: Annotated[str | None, typer.Option(help="Only those of this line.")] = None,
) -> None:
    """What every line learns by itself."""
    with connect() as api:
        rows = api.get(_PATH, adapter=adapter)["data"]
    table = Table(
        Column("policy", no_wrap=True), "name", "line", "method", "learns", "due", "on", box=None
    )
    for row in rows:
        table.add_row(
            row["id"],
            escape(row["name"]),
            escape(row["adapter"]),
            row["method"],
            _learns(row["material"]),
            _due(row["when"]),
            "yes" if row["is_enabled"] else "no",
        )
    out.print(table)


@app.command()
def show(policy_id: PolicyId) -> None:
    """One policy, and what it decided last."""
    with connect() as api:
        _print(api.get(_path(policy_id)))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its name, unique on its line.")],
    adapter: Annotated[str | None, typer.Option(help="The line that learns.")] = None,
    method: Method = None,
    material: Material = None,
    tag: Tag = None,
    count: Count = None,
    max_age_hours: MaxAge = None,
    schedule: Schedule = None,
    idle_hours: Idle = None,
    cooldown_hours: Cooldown = None,
    tokens: Tokens = None,
    steps: Steps = None,
    seconds: Seconds = None,
    file: File = None,
) -> None:
    """Have something learnt by itself. Look first what it would be: `everlearn policies dry-run ID`."""
    body = _body(
        file,
        {"name": name, "adapter": adapter, "method": method, "cooldown_hours": cooldown_hours},
        material={"kind": material, "tag": tag},
        when={
            "count": count,
            "max_age_hours": max_age_hours,
            "schedule": schedule,
            "idle_hours": idle_hours,
        },
        budget={"tokens": tokens, "steps": steps, "seconds": seconds},
    )
    with connect() as api:
        _print(api.post(_PATH, body))


@app.command()
def update(
    policy_id: PolicyId,
    method: Method = None,
    material: Material = None,
    tag: Tag = None,
    count: Count = None,
    max_age_hours: MaxAge = None,
    schedule: Schedule = None,
    idle_hours: Idle = None,
    cooldown_hours: Cooldown = None,
    tokens: Tokens = None,
    steps: Steps = None,
    seconds: Seconds = None,
    file: File = None,
    enable: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Switch it on or off.")
    ] = None,
) -> None:
    """Change a policy; what you do not name stays."""
    body = _body(
        file,
        {"method": method, "cooldown_hours": cooldown_hours, "is_enabled": enable},
        material={"kind": material, "tag": tag},
        when={
            "count": count,
            "max_age_hours": max_age_hours,
            "schedule": schedule,
            "idle_hours": idle_hours,
        },
        budget={"tokens": tokens, "steps": steps, "seconds": seconds},
    )
    if not body:
        raise Failure("Name what is to change, such as --disable or --count 64.")
    with connect() as api:
        kept = api.get(_path(policy_id))
        for group in ("material", "when", "budget"):
            if group in body:
                body[group] = {**kept[group], **body[group]}
        _print(api.patch(_path(policy_id), body))


@app.command()
def delete(policy_id: PolicyId) -> None:
    """Delete a policy; its runs stay."""
    with connect() as api:
        api.delete(_path(policy_id))
    out.print(f"{policy_id} is deleted.")


@app.command("dry-run")
def dry_run(policy_id: PolicyId) -> None:
    """What a policy would learn now: the method and why, how much, and what is left out."""
    with connect() as api:
        found = api.post(f"{_path(policy_id)}/dry-run")
    out.print(f"{'Due' if found['is_due'] else 'Not due'}: {found['when']}", markup=False)
    method = found["method"] or "no update"
    out.print(f"[bold]{method}[/]  {escape(found['why'])}")
    for name, why in found["rejected"].items():
        out.print(f"  not {name}: {why}", markup=False)
    out.print(
        f"  {found['documents']} documents, {found['train']} prompts, {found['held_out']} held out, "
        f"{found['opinions']} opinions"
    )
    for reason, number in found["left_out"].items():
        out.print(f"  left out: {number} ({reason})", markup=False)
    if found["generations"] is not None:
        out.print(f"  at most {found['generations']} replies to learn from, and those of the exam")
    if found["examples"]:
        out.print(f"  such as {', '.join(found['examples'])}")


def _path(policy_id: str) -> str:
    return f"{_PATH}/{quote(policy_id, safe='')}"


def _body(file: Path | None, fields: dict[str, Any], **groups: dict[str, Any]) -> dict[str, Any]:
    """What was said: the file's fields, with those of the command line over them."""
    body = _read(file) if file is not None else {}
    body |= {name: value for name, value in fields.items() if value is not None}
    for name, group in groups.items():
        given = {key: value for key, value in group.items() if value is not None}
        if given:
            body[name] = {**body.get(name, {}), **given}
    return body


def _read(file: Path) -> dict[str, Any]:
    try:
        body = json.loads(file.read_text())
    except OSError as error:
        raise Failure(f"Cannot read {file}: {error.strerror}.") from None
    except ValueError as error:
        raise Failure(f"{file} is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise Failure(f"{file} holds no policy: send an object with the fields of the API.")
    return body


def _print(policy: dict[str, Any]) -> None:
    state = "" if policy["is_enabled"] else "  [dim]off[/]"
    out.print(f"[bold]{policy['id']}[/]  {escape(policy['name'])} on {policy['adapter']}{state}")
    out.print(f"  {policy['method']}, learns {_learns(policy['material'])}; {_due(policy['when'])}")
    budget = [f"{value:g} {name}" for name, value in policy["budget"].items() if value is not None]
    if budget:
        out.print(f"  at most {', '.join(budget)} a run")
    if policy["cooldown_hours"]:
        out.print(f"  {policy['cooldown_hours']:g} hours between runs")
    if policy["last_run"]:
        out.print(f"  last run {policy['last_run']}")
    if decision := policy["decision"]:
        chosen = decision["method"] or "no update"
        out.print(f"  decided {decision['at'][:19]}: {chosen}. {decision['why']}", markup=False)
        for name, why in decision["rejected"].items():
            out.print(f"    not {name}: {why}", markup=False)


def _learns(material: dict[str, Any]) -> str:
    tag = f" of {escape(material['tag'])}" if material["tag"] else ""
    return f"{material['kind']}{tag}"


def _due(when: dict[str, Any]) -> str:
    said = []
    if when["count"] is not None:
        said.append(f"from {when['count']} new")
    if when["max_age_hours"] is not None:
        said.append(f"after {when['max_age_hours']:g} hours")
    if when["schedule"] is not None:
        said.append(f"at {when['schedule']}")
    due = " or ".join(said) or "when anything is new"
    idle = when["idle_hours"]
    return f"{due}, idle for {idle:g} hours" if idle is not None else due
