"""What users say of replies."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from server.api.schemas.base import Body, Id, View, Words


class PreferenceBody(Body):
    chosen: int = Field(ge=0, lt=128)
    """Index of the better choice."""
    rejected: int = Field(ge=0, lt=128)
    """Index of the worse one."""


class FeedbackBody(Body):
    completion_id: Id
    """The `id` of the reply, or its `x-everlearn-interaction`."""
    choice: int = Field(default=0, ge=0, lt=128)
    """Which choice is judged, where there were several."""
    score: float | None = Field(default=None, ge=-1, le=1, allow_inf_nan=False)
    """From -1, useless, over 0, neither good nor bad, to 1, perfect."""
    thumb: Literal["up", "down"] | None = None
    correction: Words | None = None
    """What the reply should have been."""
    reference: Words | None = None
    """An answer known to be right, to compare with."""
    preference: PreferenceBody | None = None
    comment: Words | None = None


class FeedbackView(View):
    id: str
    completion_id: str
    interaction_id: str | None
    """Null while the interaction is on its way into the database."""
    kind: str
    """score, thumb, correction, reference, preference or comment."""
    choice: int
    value: dict[str, Any]
    created_at: datetime


class FeedbackListing(View):
    data: list[FeedbackView]


class FeedbackPage(FeedbackListing):
    next: str | None
    """Cursor for `after`; null on the last page."""
