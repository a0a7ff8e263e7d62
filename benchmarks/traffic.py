"""Made-up traffic: records as the gateway captures them, the same for the same seed.

Tenants of very different size, conversations that go on while others do, resent whole with each new
turn; two versions one after the other; streams, breaks, refusals to be stored, and a few judgements.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

from benchmarks.rig import MODEL
from server.db import FeedbackKind
from server.services.feedback import Judgement

BEGINS_AT = datetime(2025, 1, 1, tzinfo=UTC)
LASTS = timedelta(days=30)
"""However many rows there are, they came in this time."""

BIG_TENANT, SMALL_TENANT = "acme", "initech"
RARE_TASK, RARE_WORD = "audit", "zanzibar"
RARE_EVERY = 2_000
"""One conversation in so many has the rare task, one row in twice so many the rare word."""

JUDGED_EVERY = 100

OPEN_CONVERSATIONS = 64
_MEAN_TURNS = 3
_USERS = 5_000

_KEYS: tuple[tuple[str, str | None, float], ...] = (
    ("key_web", None, 40),
    ("key_mail", None, 20),
    ("key_acme_1", BIG_TENANT, 20),
    ("key_acme_2", BIG_TENANT, 10),
    ("key_globex", "globex", 9.9),
    ("key_initech", SMALL_TENANT, 0.1),
)
"""Key, its tenant, its share of the conversations in percent."""

_SYLLABLES = "ba co de fi go hu ka le mi no pa ri so tu va we xi yo ze qua"
_WORDS = tuple(map("".join, product(_SYLLABLES.split(), repeat=2)))


@dataclass(slots=True)
class _Conversation:
    key: str
    owner: str | None
    task: str | None
    user: str
    turns_left: int
    messages: list[dict[str, Any]] = field(default_factory=list)


def records(count: int, seed: int = 0, begins_at: datetime = BEGINS_AT) -> Iterator[dict[str, Any]]:
    """So many records, oldest first, evenly over :data:`LASTS`."""
    source = random.Random(seed)
    is_open = [_conversation(source) for _ in range(OPEN_CONVERSATIONS)]
    for index in range(count):
        place = source.randrange(OPEN_CONVERSATIONS)
        conversation = is_open[place]
        moment = begins_at + LASTS * (index / count)
        yield _turn(source, conversation, index, moment, is_new=2 * index >= count)
        if conversation.turns_left == 0:
            is_open[place] = _conversation(source)


def judgement(index: int) -> Judgement | None:
    """What is said of a row, if anything."""
    if index % JUDGED_EVERY != JUDGED_EVERY // 2:
        return None
    said = (
        (FeedbackKind.THUMB, {"thumb": "up"}),
        (FeedbackKind.THUMB, {"thumb": "down"}),
        (FeedbackKind.SCORE, {"score": 0.5}),
        (FeedbackKind.CORRECTION, {"text": "It should say so."}),
    )
    kind, value = said[index // JUDGED_EVERY % len(said)]
    return Judgement(kind, dict(value))


def _conversation(source: random.Random) -> _Conversation:
    key, owner, _ = source.choices(_KEYS, weights=[share for _, _, share in _KEYS])[0]
    tasks = (None, None, "summary", "support")
    is_rare = source.randrange(RARE_EVERY) == 0
    system = {"role": "system", "content": f"You answer for {key}. " + "Be brief and kind. " * 10}
    return _Conversation(
        key,
        owner,
        RARE_TASK if is_rare else source.choice(tasks),
        f"user-{source.randrange(_USERS)}",
        1 + min(7, int(source.expovariate(1 / (_MEAN_TURNS - 1)))),
        [system],
    )


def _turn(
    source: random.Random,
    conversation: _Conversation,
    index: int,
    moment: datetime,
    *,
    is_new: bool,
) -> dict[str, Any]:
    """One request of a conversation with all that was said before it, and its reply."""
    conversation.turns_left -= 1
    conversation.messages.append({"role": "user", "content": _words(source, 40)})
    outcome = source.choices(("complete", "client_left", "engine_error"), (98.9, 1, 0.1))[0]
    reply = _words(source, 80) if outcome != "engine_error" else ""
    if index % (2 * RARE_EVERY) == RARE_EVERY // 4:
        reply += f" {RARE_WORD}"
    is_stream = source.random() < 0.6
    request: dict[str, Any] = {
        "model": MODEL,
        "messages": list(conversation.messages),
        "stream": is_stream,
        "temperature": 0.7,
        "max_tokens": 256,
        "user": conversation.user,
    }
    if conversation.task:
        request["metadata"] = {"task": conversation.task}
    if source.randrange(100) == 0:
        request["store"] = False
    if reply:
        conversation.messages.append({"role": "assistant", "content": reply})
    row_id = _id(source, moment)
    version = _version(source, is_new=is_new)
    duration_ms = round(source.lognormvariate(6, 0.6), 3)
    return {
        "id": row_id,
        "created_at": moment.isoformat(),
        "completion_id": f"chatcmpl-{row_id}",
        "key_id": conversation.key,
        "owner": conversation.owner,
        "endpoint": "chat",
        "requested_model": MODEL,
        "adapter": MODEL,
        "version": version,
        "engine_name": version if version.endswith("@base") else f"{version}.0123abcd",
        "is_stream": is_stream,
        "request": request,
        "reply": reply,
        "choices": None,
        "tokens": None,
        "finish_reason": "stop" if outcome == "complete" else None,
        "outcome": outcome,
        "status": 499 if outcome == "client_left" else 200,
        "error": "The engine broke off." if outcome == "engine_error" else None,
        "prompt_tokens": 60 * len(request["messages"]),
        "completion_tokens": 110 if reply else 0,
        "first_byte_ms": round(duration_ms / 10, 3),
        "duration_ms": duration_ms,
        "may_learn": source.random() < 0.95,
    }


def _version(source: random.Random, *, is_new: bool) -> str:
    """The champion of the time; one request in a thousand names the base model."""
    if source.randrange(1000) == 0:
        return f"{MODEL}@base"
    return f"{MODEL}@v2" if is_new else f"{MODEL}@v1"


def _id(source: random.Random, moment: datetime) -> str:
    """A UUIDv7 of that moment, as the gateway's ids are: time first, then chance."""
    milliseconds = int(moment.timestamp() * 1000)
    drawn = source.getrandbits(74)
    return f"int_{milliseconds:012x}7{drawn >> 62:03x}{0x8 << 60 | drawn & (1 << 62) - 1:016x}"


def _words(source: random.Random, count: int) -> str:
    return " ".join(source.choices(_WORDS, k=count))
