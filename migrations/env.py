"""Alembic's entry: one URL from Settings (or the caller's), batch mode on SQLite."""

from alembic import context
from server.core.settings import Settings
from server.db import Base
from server.db.session import Database

_url = context.config.attributes.get("url") or Settings().sqlalchemy_url

with Database(_url).engine.connect() as connection:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET lock_timeout = '5s'")
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
