"""Alembic's entry: one URL from Settings (or the caller's), batch mode on SQLite."""

from typing import Any, Literal

from alembic import context

from server.core.settings import Settings
from server.db import Base
from server.db.base import UtcDateTime
from server.db.session import Database


def render_item(kind: str, value: Any, _: Any) -> str | Literal[False]:
    """A migration must not import today's code, so our column type is written as its own base."""
    if kind == "type" and isinstance(value, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def run() -> None:
    database = Database(context.config.attributes.get("url") or Settings().sqlalchemy_url)
    with database.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET lock_timeout = '5s'")
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
            render_item=render_item,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    database.close_sync()


run()
