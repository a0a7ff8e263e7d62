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
    """Number of the version that it was trained on from; None: the clean base model."""
    generation: int = Field(default=0, ge=0)
    """How many times in a row it was trained on from another version."""
    base_model: str
    """Source of the base model, as the user names it."""
    base_hash: Sha256
    tokenizer_hash: Sha256 | None = None
    """sha256 over the base model's tokenizer files; None in manifests of old."""
    template_hash: Sha256 | None = None
    """sha256 of its chat template."""
    origin: Literal["run", "import"] = "run"
    source: str = ""
    """Where an imported adapter comes from, in its importer's words."""
    run_id: str | None = None
    """None: no run of ours, it was imported."""
    method: str
    config: dict[str, JsonValue]
    """The method's resolved config."""
    documents: tuple[DocumentRef, ...]
    tasks: tuple[DocumentRef, ...] = ()
    """The tasks the version learnt, by the hash of what they say."""
    interactions: tuple[str, ...] = ()
    """Ids of the interactions that its run took, for its lesson or its exam."""
    prompts: tuple[str, ...] = ()
    """Ids of the prompts, sent for learning, that its run took, likewise."""
    lesson_sha256: Sha256 | None = None
    """Of the file of self-edits that it was trained on, which is kept with the run."""
    seed: int | None
    """None: not known, it was imported."""
    created_at: AwareDatetime
    libraries: dict[str, str]
    """Version of each library that shaped the weights."""
    code_version: str = "unknown"
    """Our own version, with the commit where it is known."""
    environment: dict[str, JsonValue] = {}
    """What else decides the last bits: device, threads, number format."""


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
