"""The engines that are wanted, and the gateways that say they are there."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from server.db.base import Row


class Replica(Row):
    """An engine that gateways and workers shall use. What it holds is asked of it, never stored."""

    __tablename__ = "replicas"

    url: Mapped[str] = mapped_column(String(500), unique=True)
    origin: Mapped[str] = mapped_column(String(20))
    """``settings`` (set at every start) or ``api``."""
    is_draining: Mapped[bool] = mapped_column(default=False)
    """Takes no new request; what runs on it is finished."""


class Gateway(Row):
    """One gateway process: a sign of life, and what it has in flight.

    Files of a retired version go only when every gateway routes by newer rows than its retirement
    and has nothing of it in flight.
    """

    __tablename__ = "gateways"
    __table_args__ = (Index("ix_gateways_seen_at", "seen_at"),)

    name: Mapped[str] = mapped_column(String(200))
    """Host and process."""
    seen_at: Mapped[datetime]
    revision: Mapped[int]
    """Of the routes it works by."""
    in_flight: Mapped[dict[str, Any]]
    """Engine name of a version to its running requests."""
    replicas: Mapped[dict[str, Any]]
    """Replica's address to its state as this gateway sees it."""
