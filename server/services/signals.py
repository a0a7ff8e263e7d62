"""What an interaction says of the version that gave it: four signals, each between 0 (good) and 1.

A signal is None where a reply says nothing of it, which is not the same as good: a client that left
tells neither of a failure nor of a success, and of a reply under ``store: false`` no word is kept.

Not covered: whether a reply is right. That is the exam's matter before, and the feedback's after.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, load_only

from server.db import Endpoint, Feedback, FeedbackKind, Interaction, Outcome
from server.services import feedback

FAILED, SLOW, MALFORMED, FEEDBACK = "failed", "slow", "malformed", "feedback"
SIGNALS = (FAILED, SLOW, MALFORMED, FEEDBACK)

SLOWEST_SHARE = 0.1
"""Of the champion's replies count as slow; the threshold lies there."""

_SAID_AGAIN = 4
"""A run of five words may come so often before the reply counts as repeating itself."""
_RUN = 5
_CUT_OFF = ("length", "max_tokens")
_WORDLESS = (Endpoint.EMBEDDINGS,)
_COLUMNS = (
    Interaction.id,
    Interaction.created_at,
    Interaction.endpoint,
    Interaction.arm,
    Interaction.version,
    Interaction.shadow_of,
    Interaction.request,
    Interaction.reply,
    Interaction.finish_reason,
    Interaction.outcome,
    Interaction.status,
    Interaction.completion_tokens,
    Interaction.duration_ms,
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a version's replies take: a start and so much for each token, least squares.

    Milliseconds for each token alone would call a version slow for answering in fewer words.
    """

    start_ms: float
    token_ms: float
    slow_from: float
    """A reply is slow when it takes more than so many times what its length lets expect."""

    def is_slow(self, duration_ms: float, tokens: int) -> bool:
        return self.ratio(duration_ms, tokens) > self.slow_from

    def ratio(self, duration_ms: float, tokens: int) -> float:
        return duration_ms / max(self.start_ms + self.token_ms * tokens, 1e-3)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, as far as a judge may see it."""

    id: str
    created_at: datetime
    arm: str | None
    version: str
    shadow_of: str | None
    failed: float | None
    took: tuple[float, int] | None
    """Milliseconds from request to end, and tokens, of a whole reply."""
    malformed: float | None
    feedback: float | None

    def value(self, signal: str, pace: Pace | None) -> float | None:
        """What it says of a signal; of slowness nothing while no pace is known."""
        if signal == FAILED:
            return self.failed
        if signal == MALFORMED:
            return self.malformed
        if signal == FEEDBACK:
            return self.feedback
        if self.took is None or pace is None:
            return None
        return float(pace.is_slow(*self.took))


def read(session: Session, statement: Select[Interaction]) -> list[Reply]:
    """The replies that a query of interactions finds, in its order."""
    rows = session.scalars(statement.options(load_only(*_COLUMNS))).all()
    judged = feedback.feedback_of(session, [row.id for row in rows]) if rows else {}
    return [_reply(row, judged[row.id]) for row in rows]


def interactions_of(line: str) -> Select[Interaction]:
    """All of a line's interactions, oldest first."""
    return (
        select(Interaction)
        .where(Interaction.adapter == line)
        .order_by(Interaction.created_at, Interaction.id)
    )


def pace_of(replies: Iterable[Reply]) -> Pace | None:
    """The pace that nine in ten of these replies keep; None when none tells."""
    times = [reply.took for reply in replies if reply.took is not None]
    if not times:
        return None
    start_ms, token_ms = _fit(times)
    pace = Pace(start_ms, token_ms, 0.0)
    ratios = sorted(pace.ratio(*took) for took in times)
    return replace(pace, slow_from=ratios[math.ceil((1 - SLOWEST_SHARE) * len(ratios)) - 1])


def _fit(times: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Start and time for each token, neither below 0."""
    count = len(times)
    mean_ms = sum(duration for duration, _ in times) / count
    mean_tokens = sum(tokens for _, tokens in times) / count
    spread = sum((tokens - mean_tokens) ** 2 for _, tokens in times)
    if not spread:
        return 0.0, mean_ms / mean_tokens
    together = sum((ms - mean_ms) * (tokens - mean_tokens) for ms, tokens in times)
    token_ms = max(0.0, together / spread)
    start_ms = mean_ms - token_ms * mean_tokens
    return (start_ms, token_ms) if start_ms >= 0 else (0.0, mean_ms / mean_tokens)


def _reply(row: Interaction, judgements: Sequence[Feedback]) -> Reply:
    is_whole = row.outcome == Outcome.COMPLETE
    return Reply(
        id=row.id,
        created_at=row.created_at,
        arm=row.arm,
        version=row.version,
        shadow_of=row.shadow_of,
        failed=_failed(row),
        took=(row.duration_ms, row.completion_tokens)
        if is_whole and row.completion_tokens
        else None,
        malformed=_malformed(row) if is_whole else None,
        feedback=_bad_feedback(judgements),
    )


def _failed(row: Interaction) -> float | None:
    if row.outcome == Outcome.COMPLETE:
        return 0.0
    # A refusal below 500 is about the request. A stream that broke off had begun with 200.
    is_ours = row.outcome == Outcome.ENGINE_ERROR and (row.status >= 500 or row.status == 200)
    return 1.0 if is_ours else None


def _malformed(row: Interaction) -> float | None:
    if row.endpoint in _WORDLESS or row.request.get("store") is False:
        return None
    is_bad = (
        not row.reply.strip()
        or row.finish_reason in _CUT_OFF
        or repeats_itself(row.reply)
        or (_asks_for_json(row) and not _is_json(row.reply))
    )
    return float(is_bad)


def repeats_itself(text: str) -> bool:
    """Whether some five words in a row come again and again."""
    words = text.split()
    if len(words) < _RUN + _SAID_AGAIN:
        return False
    runs = Counter(tuple(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1))
    return max(runs.values()) > _SAID_AGAIN


def _asks_for_json(row: Interaction) -> bool:
    form = row.request.get("response_format")
    wanted = form.get("type") if isinstance(form, dict) else None
    return wanted in ("json_object", "json_schema") and row.finish_reason != "tool_calls"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _bad_feedback(judgements: Sequence[Feedback]) -> float | None:
    """1 when anybody was against it, 0 when those who judged it were not."""
    said = [verdict for given in judgements if (verdict := _is_against(given)) is not None]
    return float(any(said)) if said else None


def _is_against(given: Feedback) -> bool | None:
    if given.kind == FeedbackKind.CORRECTION:
        return True
    if given.kind == FeedbackKind.THUMB:
        return bool(given.value.get("thumb") == "down")
    if given.kind == FeedbackKind.SCORE:
        score = given.value.get("score")
        return isinstance(score, int | float) and score < 0  # scores go from -1 to 1
    return None
