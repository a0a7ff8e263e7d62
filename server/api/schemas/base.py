"""What the request and response models of /api/v1 share. Unknown fields of ours are refused by name."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StringConstraints,
)


def _storable(text: str) -> str:
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("NUL and halves of characters cannot be stored")
    return text


STORABLE = AfterValidator(_storable)

Text = Annotated[str, STORABLE]
"""A string that every database takes."""


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("this moment lies outside the calendar") from error


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A time with its zone, such as ``2026-11-21T08:00:00Z``."""

Id = Annotated[str, StringConstraints(min_length=1, max_length=100), STORABLE]
Words = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100_000), STORABLE
]
Reason = Annotated[str, StringConstraints(max_length=2000), STORABLE]
Title = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500), STORABLE]
Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000), STORABLE
]
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), STORABLE
]

Tenant = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), STORABLE
]

LineName = Annotated[
    str, StringConstraints(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
]
"""A folder carries it, and ``@`` ends it in the names of versions."""

PerMinute = Annotated[StrictInt, Field(ge=1, le=2**31 - 1)]
Budget = Annotated[StrictInt, Field(ge=0, le=2**63 - 1)]
Revision = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Listing(View):
    data: list[Any]


class Page(Listing):
    next: str | None
    """What to send as ``after`` for the rows that follow; null on the last page."""
