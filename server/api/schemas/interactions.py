"""What passed through the gateway."""

from datetime import datetime
from typing import Any

from server.api.schemas.base import View
from server.api.schemas.feedback import FeedbackView


class InteractionView(View):
    id: str
    completion_id: str | None
    created_at: datetime
    key_id: str
    owner: str | None
    endpoint: str
    requested_model: str
    adapter: str
    version: str
    """Who answered; usable as `model`."""
    arm: str | None
    """champion, challenger, pinned or shadow; null in rows of before there were trials."""
    shadow_of: str | None
    """The interaction that this is a copy of."""
    is_stream: bool
    conversation_id: str | None
    """Shared by all turns of a conversation."""
    reply: str
    finish_reason: str | None
    outcome: str
    status: int
    error: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    first_byte_ms: float | None
    duration_ms: float
    may_learn: bool
    split: str
    task: str | None
    end_user: str | None
    redacted_at: datetime | None


class InteractionPage(View):
    data: list[InteractionView]
    next: str | None
    """Cursor for `after`; null on the last page."""


class InteractionDetail(InteractionView):
    messages: list[dict[str, Any]]
    """The prompt, in order."""
    request: dict[str, Any]
    """What else the client asked for."""
    choices: list[Any] | None
    tokens: dict[str, Any] | None
    feedback: list[FeedbackView]
