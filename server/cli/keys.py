"""`everlearn key`: mint, list and revoke keys; `--local` works on the database of this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

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
from server.services.keys import create_key, revoke_key

app = typer.Typer(help="Keys: who may do what.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do; repeat it. Default: chat, ingest.")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Without a key, on the server's own machine.")
    ] = False,
) -> None:
    """Mint a key and print it, alone on standard output: it cannot be shown again."""
    scopes = [str(one) for one in scope or (Scope.CHAT, Scope.INGEST)]
    if local:
        secret = mint_local(Settings(), name, scopes)[1]
    else:
        with connect() as api:
            secret = api.post("/api/v1/keys", {"name": name, "scopes": scopes})["key"]
    out.print(secret, soft_wrap=True)


@app.command("list")
def list_all() -> None:
    """Every key; no secret."""
    with connect() as api:
        rows = api.get("/api/v1/keys")["data"]
    table = Table(Column("id", no_wrap=True), "name", "key", "scopes", "revoked", box=None)
    for row in rows:
        table.add_row(
            row["id"],
            escape(row["name"]),
            row["hint"],
            " ".join(row["scopes"]),
            (row["revoked_at"] or "")[:10],
        )
    out.print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Its id; see `everlearn key list`.")],
) -> None:
    """Close a key for good."""
    with connect() as api:
        row = api.delete(f"/api/v1/keys/{key_id}")
    out.print(f"{row['id']}  {escape(row['name'])}  revoked {row['revoked_at'][:19]}")


@contextmanager
def local_key(settings: Settings, name: str, scopes: list[str]) -> Iterator[str]:
    """A key for the length of a block, minted and revoked straight in the database."""
    key_id, secret = mint_local(settings, name, scopes)
    try:
        yield secret
    finally:
        with _local_session(settings) as session:
            revoke_key(session, key_id)


def mint_local(settings: Settings, name: str, scopes: list[str]) -> tuple[str, str]:
    """Mint a key straight in the database; returns its id and the secret.

    Whoever can write the home folder's database owns the server, so this needs no key.
    """
    with _local_session(settings) as session:
        key, secret = create_key(session, name, scopes)
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
