"""What a policy may say: on what a run learns, when, and how much of the machine it may use."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field

from adapters.spec import Settings

Kind = Literal["documents", "prompts", "feedback", "all"]


def _storable(text: str) -> str:
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("NUL and halves of characters cannot be stored")
    return text


class MaterialSpec(Settings):
    """What a run learns from."""

    kind: Kind = "documents"
    """documents: all of the line's owner. prompts: of traffic, and those sent for learning. feedback:
    thumbs and corrections on replies. all: whichever `auto` chooses. What the method learns from
    when left out."""
    sources: Literal["all", "uploaded", "traffic"] = "all"
    """`prompts`: only those sent for learning, or only those of traffic."""
    tag: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_storable)] | None = (
        None
    )
    """Only prompts of this tag: `tag` where they were sent for learning, `metadata.task` in traffic."""
    min_age_hours: float = Field(default=0.0, ge=0.0, le=24 * 3650)
    """Only what came at least so long ago, so that there is time to delete it."""
    max_age_days: float | None = Field(default=None, gt=0.0, le=3650)
    """Only what came within so many days."""
    most: int = Field(default=512, ge=1, le=4096)
    """Most prompts of one run, the newest; as many opinions."""


def _cron(expression: str) -> str:
    try:
        CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(
            f"{error}; write five fields as in crontab, such as `0 3 * * *` for 3:00 UTC every day"
        ) from error
    return expression


class WhenSpec(Settings):
    """When a policy is due: something is new, and any one of count, age and schedule is met.

    With none of them, anything new will do. `idle_hours` must be met besides.
    """

    count: int | None = Field(default=None, ge=1)
    """At least so many new pieces of material."""
    max_age_hours: float | None = Field(default=None, gt=0.0, le=24 * 3650)
    """The oldest new piece has waited so long."""
    schedule: Annotated[str, Field(max_length=100), AfterValidator(_cron)] | None = None
    """A cron expression, in UTC; when its moment comes and nothing is new, the next one is waited for."""
    idle_hours: float | None = Field(default=None, gt=0.0, le=24 * 365)
    """Nobody has asked the line for so long."""


def has_fired(schedule: str, since: datetime, now: datetime) -> bool:
    """Whether a moment of the schedule lies after `since` and not after `now`; both in UTC."""
    try:
        return next(CronSim(schedule, since)) <= now
    except StopIteration:  # a day that no calendar has
        return False
