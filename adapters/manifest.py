"""The manifest of an artifact: where a version comes from and what its files must be."""

import hashlib
import json
from typing import Annotated, Literal, TypeAlias

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DocumentRef(_Record):
    """A document the version learnt from."""

    id: str
    sha256: Sha256


class ManifestFields(_Record):
    """What the writer knows about a version."""

    adapter: str = Field(min_length=1)
    version: int = Field(ge=1)
    parent: int | None = Field(default=None, ge=1)
    """The version it follows in its line; None: the base model."""
    base_model: str
    """Source of the base model, as the user names it."""
    base_hash: Sha256
    run_id: str
    method: str
    config: dict[str, JsonValue]
    """The method's resolved config."""
    documents: tuple[DocumentRef, ...]
    seed: int
    created_at: AwareDatetime
    libraries: dict[str, str]
    """Version of each library that shaped the weights."""


class Manifest(ManifestFields):
    """`manifest.json`: where a version comes from and what its files must be."""

    format_version: Literal[1] = 1
    config_hash: Sha256
    """sha256 of the config as canonical JSON."""
    files: dict[str, Sha256]
    """sha256 of every other file of the artifact."""


def config_hash(config: dict[str, JsonValue]) -> str:
    """sha256 of a config as canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
