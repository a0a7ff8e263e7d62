"""Engines and units of work. `commit()` is called here and nowhere else.

One request or short task is one transaction; messages queued with :func:`after_commit` go out only
when it has succeeded, so that nobody is told of a row that does not exist.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from server.core.json_codec import decode, encode

DATABASE_AWAY = (OperationalError, InterfaceError, TimeoutError)
"""What SQLAlchemy raises when no database answers, or none of its connections is free."""

Result = TypeVar("Result")
Hook = Callable[[], None]

_HOOKS = "after_commit"
_BEGIN = "everlearn_begin"
_SQLITE_CACHE_KIB = 64 * 1024
"""Ids are drawn by chance, so a batch of rows touches pages all over its indexes."""
_SQLITE_SMALL_CACHE_KIB = 4 * 1024

_ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}

# An error message with its parameters would carry prompts and texts into logs and answers.
_OPTIONS: dict[str, Any] = {
    "pool_pre_ping": True,
    "hide_parameters": True,
    "json_serializer": lambda value: encode(value).decode(),
    "json_deserializer": decode,
}


class Database:
    """One URL, a sync and an async engine over it; made once per process, closed at its end."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self._engine: Engine | None = None
        self._async_engine: AsyncEngine | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = _with_sqlite_rules(create_engine(self.url, **_OPTIONS))
        return self._engine

    @property
    def async_engine(self) -> AsyncEngine:
        if self._async_engine is None:
            url = self.url.set(drivername=_ASYNC_DRIVERS[self.url.get_backend_name()])
            self._async_engine = create_async_engine(url, **_OPTIONS)
            _with_sqlite_rules(self._async_engine.sync_engine)
        return self._async_engine

    @contextmanager
    def unit_of_work(self) -> Iterator[Session]:
        """A sync session that commits once at the end; for workers and the command line."""
        with Session(self.engine, expire_on_commit=False) as session:
            with session.begin():
                yield session
            _run_hooks(session)

    @contextmanager
    def look(self) -> Iterator[Session]:
        """A sync session that only reads: it takes no write lock, so it waits for no writer."""
        engine = self.engine.execution_options(**{_BEGIN: "DEFERRED"})
        with Session(engine, expire_on_commit=False) as session:
            yield session

    @asynccontextmanager
    async def async_unit_of_work(self) -> AsyncIterator[AsyncSession]:
        """The async twin; call services through ``await session.run_sync(service, …)``."""
        async with AsyncSession(self.async_engine, expire_on_commit=False) as session:
            async with session.begin():
                yield session
            await asyncio.to_thread(_run_hooks, session.sync_session)  # the queue may be slow

    async def run(self, service: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """One service call as one transaction, without blocking the event loop."""
        async with self.async_unit_of_work() as session:
            return await session.run_sync(service, *args, **kwargs)

    async def read(self, query: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """A call that only reads: it takes no write lock, so it waits for no writer."""
        engine = self.async_engine.execution_options(**{_BEGIN: "DEFERRED"})
        async with AsyncSession(engine, expire_on_commit=False) as session:
            return await session.run_sync(query, *args, **kwargs)

    async def close(self) -> None:
        if self._async_engine is not None:
            await self._async_engine.dispose()
        self.close_sync()

    def close_sync(self) -> None:
        if self._engine is not None:
            self._engine.dispose()


def after_commit(session: Session, hook: Hook) -> None:
    """Call ``hook`` once the session's transaction has been committed; never if it is not."""
    session.info.setdefault(_HOOKS, []).append(hook)


def _run_hooks(session: Session) -> None:
    for hook in session.info.pop(_HOOKS, []):
        hook()


def _with_sqlite_rules(engine: Engine) -> Engine:
    """WAL, foreign keys and a write lock taken at BEGIN.

    A transaction that starts as a reader and then writes can fail with "database is locked" at
    once, however long the busy timeout; taking the lock first makes it wait its turn instead. What
    only reads says so (:meth:`Database.read`).
    """
    if engine.dialect.name != "sqlite":
        return engine

    is_async = engine.dialect.is_async  # one of many connections, each with a cache of its own
    cache_kib = _SQLITE_CACHE_KIB if not is_async else _SQLITE_SMALL_CACHE_KIB

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "wal_autocheckpoint=16000",  # pages: 64 MiB; a page that changes often is copied once
            "foreign_keys=ON",
            "busy_timeout=15000",
            f"cache_size=-{cache_kib}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get(_BEGIN, "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine
