"""The queries of console, learning and clean-up, as the services run them, each timed alone."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from statistics import median

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from benchmarks.rig import MODEL
from benchmarks.traffic import (
    BEGINS_AT,
    BIG_TENANT,
    LASTS,
    RARE_TASK,
    RARE_WORD,
    SMALL_TENANT,
)
from server.api.views import interaction_detail
from server.core.clock import utc_now
from server.core.security import Scope
from server.db import Endpoint, Feedback, FeedbackKind, Interaction, Outcome
from server.db.session import Database
from server.services import experience, feedback, interactions, registry, retention
from server.services.feedback import Judgement
from server.services.interactions import Filters
from server.services.keys import Principal

PAGE = 100
RUNS = 7
LONG_S = 10.0
"""No further run of a query that has taken so long altogether."""

OPERATOR = Principal("key_bench", "bench", frozenset({Scope.ADMIN}))


@dataclass(frozen=True, slots=True)
class Query:
    """One thing that is asked of the database; it may write, and is rolled back."""

    name: str
    run: Callable[[Session], object]
    is_bounded: bool = True
    """Whether it should stay quick however many rows there are."""


def measure(database: Database) -> Iterator[tuple[Query, float]]:
    """Each query with its median time in milliseconds, after one run that is not counted."""
    with Session(database.engine) as session:
        queries = list(_queries(session))
    for query in queries:
        times: list[float] = []
        _timed(database, query)
        while len(times) < RUNS and sum(times) < LONG_S:
            times.append(_timed(database, query))
        yield query, 1000 * median(times)


def _timed(database: Database, query: Query) -> float:
    """Seconds; in a session of its own, so that nothing is remembered from before."""
    with Session(database.engine, expire_on_commit=False) as session:
        session.connection()  # the pool's look at its connection is not the query's
        began = time.perf_counter()
        query.run(session)
        took = time.perf_counter() - began
        session.rollback()
    return took


def _queries(session: Session) -> Iterator[Query]:
    middle = BEGINS_AT + LASTS / 2
    day = Filters(since=middle, until=middle + timedelta(days=1), text=RARE_WORD)
    yield _list("first page", Filters())
    yield _list("deep page", Filters(), after=_cursor(session))
    yield _list("a big tenant's first page", Filters(), tenant=BIG_TENANT)
    yield _list("a small tenant's first page", Filters(), tenant=SMALL_TENANT)
    yield _list("filter: line", Filters(adapter=MODEL))
    yield _list("filter: the version before", Filters(version=f"{MODEL}@v1"))
    yield _list("filter: a rare version", Filters(version=f"{MODEL}@base"))
    yield _list("filter: outcome client_left", Filters(outcome=Outcome.CLIENT_LEFT))
    yield _list("filter: outcome engine_error", Filters(outcome=Outcome.ENGINE_ERROR))
    yield _list("filter: an endpoint nobody used", Filters(endpoint=Endpoint.EMBEDDINGS))
    yield _list("filter: a common task", Filters(task="support"))
    yield _list("filter: a rare task", Filters(task=RARE_TASK))
    yield _list("filter: a busy key", Filters(key="key_web"))
    yield _list("filter: a quiet key", Filters(key="key_initech"))
    yield _list("filter: a key nobody used", Filters(key="key_nobody"))
    yield _list("filter: conversation", Filters(conversation=_middle(session).conversation_id))
    yield _list("filter: one hour", Filters(since=middle, until=middle + timedelta(hours=1)))
    yield _list("filter: has feedback", Filters(has_feedback=True))
    yield _list("filter: has no feedback", Filters(has_feedback=False))
    yield _list("search: a rare word in one day", day)
    yield _list("search: a rare word in all", Filters(text=RARE_WORD), is_bounded=False)
    yield from _of_one(session)
    yield from _learning(session)
    yield from _cleaning()
    yield Query(
        "count of all (asked by nobody)",
        lambda session: session.scalar(select(func.count()).select_from(Interaction)),
        is_bounded=False,
    )


def _list(
    name: str,
    filters: Filters,
    *,
    tenant: str | None = None,
    after: str | None = None,
    is_bounded: bool = True,
) -> Query:
    principal = Principal("key_bench", "bench", frozenset({Scope.READ}), tenant)
    return Query(
        f"list: {name}",
        lambda session: interactions.list_interactions(
            session, principal, filters, after=after, limit=PAGE
        ),
        is_bounded,
    )


def _of_one(session: Session) -> Iterator[Query]:
    """What is asked about one interaction."""
    one = _middle(session)
    completion_id = one.completion_id or ""
    judged = session.scalars(
        select(Feedback.completion_id).where(Feedback.created_at < utc_now()).limit(1)
    ).one()

    def get(session: Session) -> object:
        return interaction_detail(session, interactions.get_interaction(session, OPERATOR, one.id))

    def give(session: Session) -> object:
        said = Judgement(FeedbackKind.COMMENT, {"text": "Well said."})
        return feedback.give(session, OPERATOR, completion_id, [said])

    def on_completion(session: Session) -> object:
        return feedback.list_feedback(session, OPERATOR, target=judged, after=None, limit=PAGE)

    yield Query("get: one with its messages", get)
    yield Query("feedback: give by completion id", give)
    yield Query("feedback: list by completion id", on_completion)
    yield Query(
        "feedback: first page",
        lambda session: feedback.list_feedback(session, OPERATOR, after=None, limit=PAGE),
    )
    yield Query(
        "feedback: first page of corrections",
        lambda session: feedback.list_feedback(
            session, OPERATOR, kind=FeedbackKind.CORRECTION, after=None, limit=PAGE
        ),
    )
    yield Query(
        "redact: one", lambda session: interactions.redact_interaction(session, OPERATOR, one.id)
    )


def _learning(session: Session) -> Iterator[Query]:
    """What a learner and an export read, without the redaction, which is CPU and the same."""
    place = (_middle(session).created_at, _middle(session).id)

    def learnable(split: str, since_days: float | None = None) -> Callable[[Session], object]:
        since = None if since_days is None else BEGINS_AT + timedelta(days=since_days)

        def read(session: Session) -> object:
            line = registry.get_adapter(session, MODEL)
            found = experience.learnable(
                session, line, split=split, since=since, redactor=_unredacted
            )
            return list(islice(found, experience.PAGE))

        return read

    yield Query("learn: first page", learnable("train"))
    yield Query("learn: first page since the middle", learnable("train", LASTS.days / 2))
    yield Query("learn: first page for exams", learnable("gate"))
    yield Query(
        "export: first page",
        lambda session: experience.export_page(session, OPERATOR, Filters()),
    )
    yield Query(
        "export: deep page",
        lambda session: experience.export_page(session, OPERATOR, Filters(), place),
    )
    yield Query(
        "export: first page of the later version",
        lambda session: experience.export_page(session, OPERATOR, Filters(version=f"{MODEL}@v2")),
    )


def _cleaning() -> Iterator[Query]:
    """What the workers do at every tick."""
    keep_for = utc_now() - BEGINS_AT - LASTS / 2
    yield Query(
        f"retention: a batch of {retention.BATCH}",
        lambda session: retention.delete_old(session, keep_for=keep_for),
        is_bounded=False,
    )
    yield Query("feedback: those that wait", retention.tend_feedback)


def _middle(session: Session) -> Interaction:
    """An interaction in the midst, with a conversation."""
    return session.scalars(
        select(Interaction)
        .where(
            Interaction.created_at >= BEGINS_AT + LASTS / 2,
            Interaction.conversation_id.is_not(None),
        )
        .order_by(Interaction.created_at)
        .limit(1)
    ).one()


def _cursor(session: Session) -> str | None:
    """Of the page that begins in the midst."""
    until = Filters(until=BEGINS_AT + LASTS / 2)
    return interactions.list_interactions(session, OPERATOR, until, after=None, limit=1).next


def _unredacted(text: str) -> str:
    return text
