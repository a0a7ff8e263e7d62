"""Versions, and where they come from."""

from datetime import datetime
from typing import Any

from server.api.schemas.base import Body, View


class VersionView(View):
    name: str
    number: int
    status: str
    parent: str
    """What it was trained on from: the base, or another version."""
    generation: int
    """How many times in a row it was trained on from another version; 0: from the clean base."""
    engine_name: str
    run_id: str | None
    documents: list[str]
    prompts: int
    """How many prompts sent for learning its runs took."""
    interactions: int
    """How many interactions they took; the manifest names those of its own run."""
    exam: dict[str, Any] | None
    """The gate's decision with its figures."""
    origin: str
    """run, or import: a foreign adapter that an admin brought."""
    created_at: datetime
    retired_at: datetime | None
    """Since when it never serves again."""
    retire_reason: str | None
    files_removed_at: datetime | None
    """When its weights were removed from the disk."""


class LineageView(View):
    """One step on the way from a version back to its base model."""

    name: str
    status: str | None
    """Null for the base model, like all that follows."""
    origin: str | None
    run_id: str | None
    verdict: str | None
    documents: int | None
    prompts: int | None
    """Sent for learning and of traffic, together."""
    created_at: datetime | None


class VersionDetail(VersionView):
    adapter: str
    aliases: list[str]
    """Those that point at it."""
    digest: str
    """sha256 of config and weights; the same training gives the same."""
    manifest: dict[str, Any] | None
    """Where it comes from and what it takes to make it again; null for another's eyes."""
    lineage: list[LineageView]
    """From this version to the base model, with the runs between."""


class ImportForm(Body):
    config: bytes
    """The file `adapter_config.json` of a PEFT folder."""
    weights: bytes
    """Its `adapter_model.safetensors`."""
    source: str = ""
    """Where the adapter comes from; kept in the manifest."""
    reason: str = ""
    """Kept in the audit trail."""
