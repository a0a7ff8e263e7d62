"""Lines, the moves of their aliases, and trials."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, StrictInt

from server.api.schemas.base import Body, Line, LineName, Reason, Revision, Tenant, Text, View
from server.api.schemas.versions import VersionView


class AliasEventView(View):
    kind: str
    alias: str
    from_version: str
    to_version: str
    actor: str
    reason: str
    is_forced: bool
    """Whether an admin let a version serve that had not passed the gate."""
    revision: int
    """The alias's count after this move."""
    created_at: datetime


class SignalView(View):
    pairs: int
    """Comparisons of challenger and champion so far."""
    challenger: float | None
    """Share of its replies that failed, were slow, malformed or judged badly."""
    champion: float | None
    margin: float
    """Rise of that share that is still accepted."""
    harm_e: float
    """Evidence that the rise is above the margin; 1 says nothing."""
    safe_e: float
    """Evidence that it is below."""
    difference_low: float
    """The rise lies between these, at every look."""
    difference_high: float


class TrialView(View):
    id: str
    version: str
    champion: str
    """Who it is compared with."""
    mode: str
    """hold, shadow or canary."""
    state: str
    """running, waiting, promoted or aborted."""
    share: float
    """Percent of the requests."""
    started_by: str
    reason: str
    created_at: datetime
    judged_at: datetime | None
    """The judge's last look."""
    replies: int
    """Of the challenger, at that look."""
    verdict: str | None
    """promote, abort or continue, at that look."""
    evidence: dict[str, SignalView]
    """By signal: failed, slow, malformed, feedback."""
    ended_at: datetime | None
    ended_by: str | None
    outcome: str | None
    """Why it waits, or why it ended."""


class AdapterView(View):
    name: str
    owner: str | None
    """The tenant whose line it is; null is everybody's."""
    role: str
    """serve; task: it answers one task and learns no documents; editor: it writes self-edits, and
    nobody can ask it."""
    base_model: str
    base_hash: str
    champion: str
    revision: int
    """Counts the champion's moves; an order may name it as `expected_revision`."""
    aliases: dict[str, str]
    versions: list[VersionView]
    events: list[AliasEventView]
    trial: TrialView | None
    """The trial that runs or waits."""
    rollout: dict[str, Any] | None
    """What the line has of its own in place of the settings `EVERLEARN_ROLLOUT__…`."""


class AdapterChangesBody(Body):
    rollout: dict[str, Any] | None
    """The line's own values of the settings `EVERLEARN_ROLLOUT__…`, all of them; null: the settings'."""


class TrialBody(Body):
    version: Text | StrictInt
    """Which one to try: v2, 2 or smollm2@v2."""
    mode: Literal["shadow", "canary"] = "canary"
    """`canary` lets it answer a share of the requests; `shadow` sends it copies of them."""
    share: float | None = Field(default=None, gt=0, le=100)
    """Percent of the requests, above 0 and at most 100; the line's own when left out."""
    reason: Reason = ""
    force: bool = False
    """Try a version that failed its exam, too."""


class ApprovalBody(Body):
    reason: Reason = ""


class LineBody(Body):
    name: LineName
    """What clients ask for."""
    owner: Tenant | None = None
    """The tenant who alone may ask for it and whose documents it learns; everybody's when left out."""


class PromoteBody(Body):
    version: Text | StrictInt
    """Where to move the champion: v2, 2, smollm2@v2 or base."""
    reason: Reason = ""
    expected_revision: Revision | None = None
    """The line's `revision` that the order was made for; refused if it has moved since."""
    force: bool = False
    """Let a version serve that was rejected or never examined; the audit trail keeps it."""


class RollbackBody(Body):
    to: Text | StrictInt | None = None
    """Where to go back to; what served before when left out."""
    reason: Reason = ""
    expected_revision: Revision | None = None
    """The line's `revision` that the order was made for; refused if it has moved since."""


class RetireBody(Body):
    reason: Line
    """Kept with the version, and told to whoever asks for it."""


class MoveView(View):
    adapter: str
    alias: str
    kind: str
    from_version: str
    to_version: str
    revision: int
    """The champion's count after this move."""
    is_forced: bool
    skipped: list[str]
    """Versions that served before and were stepped over, because they cannot serve again."""
    moved_in_ms: float
    """From the order to the moment the next request is served by the new weights."""
