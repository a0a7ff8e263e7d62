"""`everlearn key`: mint, list, limit and revoke keys; `--local` works on the database of this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from server.cli.client import connect
from server.cli.console import Failure, out
from server.core.security import Scope
from server.core.settings import Settings
from server.db.session import Database
from server.services import audit
from server.services.keys import Limits, create_key, revoke_key

app = typer.Typer(help="Keys: who may do what, and how much.", no_args_is_help=True)


_LIFTS = "0 lifts the limit."


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do; repeat it. Default: chat, ingest.")
    ] = None,
    owner: Annotated[
        str | None, typer.Option(help="The tenant it belongs to. Default: your own.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Requests it may send a minute. Default: any number.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Tokens it may use a minute, prompts included.")
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(min=0, help="Tokens it may use in all.")
    ] = None,
    no_learning: Annotated[
        bool, typer.Option("--no-learning", help="What passes under it is never learnt.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Without a key, on the server's own machine.")
    ] = False,
) -> None:
    """Mint a key and print it, alone on standard output: it cannot be shown again."""
    scopes = [str(one) for one in scope or (Scope.CHAT, Scope.INGEST)]
    limits = Limits(requests_per_minute, tokens_per_minute, token_budget)
    if local:
        secret = mint_local(
            Settings(), name, scopes, owner=owner, allows_learning=not no_learning, limits=limits
        )[1]
    else:
        body = {"name": name, "scopes": scopes, **_given(owner, no_learning, limits)}
        with connect() as api:
            secret = api.post("/api/v1/keys", body)["key"]
    out.print(secret, soft_wrap=True)


@app.command("list")
def list_all() -> None:
    """Every key; no secret."""
    with connect() as api:
        rows = api.get("/api/v1/keys")["data"]
    table = Table(
        Column("id", no_wrap=True), "name", "owner", "key", "scopes", "tokens", "revoked", box=None
    )
    for row in rows:
        table.add_row(
            row["id"],
            escape(row["name"]),
            escape(row["owner"] or ""),
            row["hint"],
            " ".join(row["scopes"]),
            _used(row),
            (row["revoked_at"] or "")[:10],
        )
    out.print(table)


@app.command()
def limit(
    key_id: Annotated[str, typer.Argument(help="Its id; see `everlearn key list`.")],
    requests_per_minute: Annotated[int | None, typer.Option(min=0, help=_LIFTS)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=0, help=_LIFTS)] = None,
    token_budget: Annotated[
        int | None, typer.Option(min=-1, help="Tokens in all; -1 lifts the limit.")
    ] = None,
) -> None:
    """Set limits anew, on every gateway at once; what is not named stays."""
    changes = {
        name: None if value == lifted else value
        for name, value, lifted in (
            ("requests_per_minute", requests_per_minute, 0),
            ("tokens_per_minute", tokens_per_minute, 0),
            ("token_budget", token_budget, -1),
        )
        if value is not None
    }
    if not changes:
        raise Failure("Name a limit: `everlearn key limit --help` lists them.")
    with connect() as api:
        row = api.patch(f"/api/v1/keys/{key_id}", changes)
    out.print(f"{row['id']}  {escape(row['name'])}")
    for name in ("requests_per_minute", "tokens_per_minute", "token_budget"):
        out.print(f"  {name.replace('_', ' ')}: {'no limit' if row[name] is None else row[name]}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Its id; see `everlearn key list`.")],
) -> None:
    """Close a key for good."""
    with connect() as api:
        row = api.delete(f"/api/v1/keys/{key_id}")
    out.print(f"{row['id']}  {escape(row['name'])}  revoked {row['revoked_at'][:19]}")


def _given(owner: str | None, no_learning: bool, limits: Limits) -> dict[str, Any]:
    """The fields that were chosen; the rest stays the server's to decide."""
    fields = {"owner": owner, **asdict(limits), "allows_learning": False if no_learning else None}
    return {name: value for name, value in fields.items() if value is not None}


def _used(row: dict[str, Any]) -> str:
    budget = row["token_budget"]
    return f"{row['tokens_used']}" if budget is None else f"{row['tokens_used']} of {budget}"


@contextmanager
def local_key(settings: Settings, name: str, scopes: list[str]) -> Iterator[str]:
    """A key for the length of a block, minted and revoked straight in the database."""
    key_id, secret = mint_local(settings, name, scopes)
    try:
        yield secret
    finally:
        with _local_session(settings) as session:
            revoke_key(session, key_id)
            audit.record(session, audit.LOCAL, "key.revoke", key_id)


def mint_local(settings: Settings, name: str, scopes: list[str], **fields: Any) -> tuple[str, str]:
    """Mint a key straight in the database; returns its id and the secret.

    Further fields are those of :func:`create_key`.

    Whoever can write the home folder's database owns the server, so this needs no key.
    """
    with _local_session(settings) as session:
        key, secret = create_key(session, name, scopes, **fields)
        session.flush()
        detail = {"name": name, "scopes": scopes}
        audit.record(session, audit.LOCAL, "key.create", key.id, detail, owner=key.owner)
        return key.id, secret


@contextmanager
def _local_session(settings: Settings) -> Iterator[Session]:
    database = Database(settings.sqlalchemy_url)
    try:
        with database.unit_of_work() as session:
            yield session
    except DBAPIError:
        raise Failure(
            f"There is no database of a server in {settings.home_path}. Start one first: "
            "`everlearn up`; or set EVERLEARN_HOME or EVERLEARN_DATABASE_URL to its place."
        ) from None
    finally:
        database.close_sync()
