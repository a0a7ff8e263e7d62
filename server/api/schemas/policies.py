"""Policies, and what one would learn now."""

from datetime import datetime
from typing import Any

from pydantic import Field, StrictBool

from adapters.spec import BudgetSpec
from server.api.schemas.base import Body, LineName, Text, View
from server.services.policy_rules import MaterialSpec, WhenSpec


class PolicyBody(Body):
    name: LineName
    """Unique on its line."""
    adapter: Text | None = None
    """The line that learns; the served model's own when left out."""
    method: Text | None = None
    """A method's name, or `auto`; when left out, the settings' for documents, else `auto`."""
    material: MaterialSpec | None = None
    """What it learns from; all that the method learns from when left out."""
    when: WhenSpec = WhenSpec()
    """When it is due; whenever something is new when left out."""
    budget: BudgetSpec = BudgetSpec()
    """Ceilings of each of its runs."""
    config: dict[str, Any] = Field(default={})
    """What is to differ from the settings' config of the method; with `auto`, by the method's name."""
    is_enabled: StrictBool = True
    cooldown_hours: float = Field(default=0.0, ge=0.0, le=24 * 365, allow_inf_nan=False)
    """After a run of it, so long none is begun."""


class PolicyPatch(Body):
    """What is left out stays; what is given is replaced as a whole."""

    method: Text | None = None
    material: MaterialSpec = MaterialSpec()
    when: WhenSpec = WhenSpec()
    budget: BudgetSpec = BudgetSpec()
    config: dict[str, Any] = Field(default={})
    is_enabled: StrictBool = True
    cooldown_hours: float = Field(default=0.0, ge=0.0, le=24 * 365, allow_inf_nan=False)


class PolicyView(View):
    id: str
    name: str
    adapter: str
    method: str
    """As a run would get it now: where none was named, the settings' or `auto`."""
    material: dict[str, Any]
    when: dict[str, Any]
    budget: dict[str, Any]
    config: dict[str, Any]
    is_enabled: bool
    cooldown_hours: float
    decision: dict[str, Any] | None
    """What it decided when it was due last: `method` (null: no run), `why`, and `rejected`, by method."""
    last_run: str | None
    """Id of its latest run."""
    changed_by: str | None
    """Who changed it last; null: the settings made it."""
    created_at: datetime


class DryRunView(View):
    """What a policy would learn now."""

    is_due: bool
    when: str
    """Why it is due, or why not."""
    new: int
    """Pieces of material since its last run."""
    method: str | None
    """Null: there would be no run."""
    why: str
    rejected: dict[str, str]
    """Why none of the other methods, where `auto` chooses."""
    config: dict[str, Any] | None
    documents: int
    train: int
    """Prompts that would be learnt from."""
    held_out: int
    """Prompts that would only be asked in the exam."""
    opinions: int
    left_out: dict[str, int]
    """How many prompts and opinions are not taken, by the reason."""
    examples: list[str]
    """Ids of some that are taken: of prompts, or of interactions."""
    generations: int | None
    """Replies that the learning would ask for at most, the exam's not counted; null where that is
    not known before."""
