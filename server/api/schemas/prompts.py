"""Prompts sent to be learnt from."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from server.api.schemas.base import Body, Name, Text, View


class PromptBody(Body):
    prompt: Text | None = None
    """One user's turn."""
    messages: list[dict[str, Any]] | None = None
    """In its place: a conversation that ends with a user's turn."""
    answers: list[Text] = Field(default=[])
    """Any of them is right; none where nobody knows."""
    tests: Text | None = None
    """Python code that exercises the code of a reply."""
    tag: Annotated[Name, Field(max_length=100)] | None = None
    """The kind of task; material is chosen by it."""


class PromptsBody(Body):
    prompts: list[PromptBody]


class PromptView(View):
    id: str
    owner: str | None
    messages: list[dict[str, str]]
    answers: list[str]
    tests: str | None
    tag: str | None
    split: str
    """train, or gate: never learnt from, only asked in exams."""
    versions: list[str]
    """Versions whose run took it."""
    created_at: datetime
    deleted_at: datetime | None
    """When its words were forgotten; the row stays for its versions."""


class SentPrompt(View):
    """What became of one prompt of a batch."""

    id: str
    is_new: bool
    split: str


class SentPrompts(View):
    data: list[SentPrompt]
    """In the order of the batch."""
    created: int
