"""Keys: who may do what."""

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from server.db.base import Row


class ApiKey(Row):
    """A hashed key with its scopes."""

    __tablename__ = "api_keys"

    name: Mapped[str] = mapped_column(String(200))
    hint: Mapped[str] = mapped_column(String(16))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    revoked_at: Mapped[datetime | None]
