"""Runs, their reports, and the methods that they follow."""

from datetime import datetime
from typing import Any

from pydantic import Field

from server.api.schemas.base import Body, Text, View
from server.api.schemas.versions import LineageView
from server.services.policy_rules import MaterialSpec


class RunBody(Body):
    adapter: Text | None = None
    """The line that learns; the served model's own when left out."""
    method: Text | None = None
    """How it learns; the settings' method when left out."""
    config: dict[str, Any] = Field(default={})
    """What is to differ from the settings' config of the method; with `auto`, by the method's name."""
    material: MaterialSpec | None = None
    """From what; all that the method learns from when left out."""


class MethodView(View):
    """One way to learn."""

    name: str
    purpose: str
    is_default: bool
    """Whether it is used where none is named."""
    config: dict[str, Any]
    """What a run of it gets."""
    json_schema: dict[str, Any]
    """Of everything that its config can say."""


class RunView(View):
    id: str
    adapter: str
    kind: str
    """learn, or rebuild: an old version is trained again, to compare."""
    rebuilds: str | None
    """The version that is trained again."""
    method: str
    status: str
    stage: str | None
    """chunk, quiz, those of the method (outer_loop, self_edits, replies, training), exam or swap."""
    done: int
    total: int
    attempt: int
    verdict: str | None
    version: str | None
    documents: list[str]
    tasks: list[str]
    """What it learnt instead of documents."""
    prompts: list[str]
    """Prompts sent for learning that it took, for its lesson or its exam."""
    interactions: int
    """How many of traffic it took, likewise; the manifest of its version names them."""
    material: dict[str, Any]
    """What it was to learn from; empty: documents, or a task."""
    reason: dict[str, Any] | None
    """Why this method, and why none of the others; null where nobody chose."""
    report: dict[str, Any]
    error: str | None
    requested_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class ReportView(View):
    """All that a run found: the gate's decision, both answers to every question, the lineage."""

    run: RunView
    config: dict[str, Any]
    """All settings of its method, as they were when it was ordered; ``POST /api/v1/runs`` takes the
    same fields."""
    exam: dict[str, Any]
    """The gate's decision; empty where there was no exam."""
    questions: list[dict[str, Any]]
    """Both answers to each: the lost ones first, then the gained ones."""
    lineage: list[LineageView]
    """From the run's version to the base model; empty where it made none."""
