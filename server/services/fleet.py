"""Replicas that are wanted, and the gateways that say they are there.

Desired state only: what a replica holds and how it is are asked of it by every gateway
(:mod:`server.engine.fleet`), which tells what it sees in its own row.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from server.core.clock import new_id
from server.core.errors import Conflict, InvalidRequest, RowNotFound
from server.db import Gateway, Replica

SETTINGS = "settings"
API = "api"

KEEP_SILENT = timedelta(days=1)
"""Rows of gateways that were killed go after this time."""

SILENT_AFTER = timedelta(seconds=30)
"""A gateway that has not written its row for this long counts as gone."""

MAX_URL = 500


def list_replicas(session: Session) -> Sequence[Replica]:
    """Every replica, oldest first."""
    return session.scalars(select(Replica).order_by(Replica.id)).all()


def get_replica(session: Session, replica_id: str) -> Replica:
    """The row, held against others until the transaction ends.

    Raises:
        RowNotFound: there is none of this id.
    """
    replica = session.get(Replica, replica_id, with_for_update=True)
    if replica is None:
        raise RowNotFound("replica", replica_id, "List them: `everlearn fleet`.")
    return replica


def wanted(session: Session) -> dict[str, bool]:
    """Address of every replica to whether it drains."""
    rows = session.execute(select(Replica.url, Replica.is_draining).order_by(Replica.id))
    return {row[0]: row[1] for row in rows}


def urls(session: Session, configured: Sequence[str]) -> list[str]:
    """Addresses for a worker: every replica that does not drain; without rows, the settings' own."""
    known = wanted(session)
    if not known:
        return list(configured)
    return [url for url, is_draining in known.items() if not is_draining]


def add_replica(session: Session, url: str) -> Replica:
    """Want a further replica.

    Raises:
        InvalidRequest: not an address that the server may call.
        Conflict: it is there already.
    """
    replica = Replica(id=new_id("rep"), url=_checked(url), origin=API)
    taken = f"The replica {replica.url} is there already."
    if session.scalar(select(Replica.id).where(Replica.url == replica.url)) is not None:
        raise Conflict(taken)
    try:
        with session.begin_nested():
            session.add(replica)
    except IntegrityError as error:  # somebody added it at the same moment
        raise Conflict(taken) from error
    return replica


def set_draining(session: Session, replica_id: str, *, is_draining: bool) -> Replica:
    """Let a replica take no new request, or take them again.

    Raises:
        RowNotFound: no such replica.
    """
    replica = get_replica(session, replica_id)
    replica.is_draining = is_draining
    session.flush()
    return replica


def remove_replica(session: Session, replica_id: str) -> Replica:
    """Want it no more; what runs on it is finished.

    Raises:
        RowNotFound: no such replica.
        Conflict: it is the only one.
    """
    there = session.scalars(select(Replica.id).order_by(Replica.id).with_for_update()).all()
    replica = get_replica(session, replica_id)
    if len(there) == 1:
        raise Conflict(
            f"{replica.url} is the only replica; add another one first: `everlearn fleet add URL`."
        )
    session.delete(replica)
    session.flush()
    return replica


def sync_from_settings(session: Session, configured: Sequence[str]) -> None:
    """Have the rows that come from settings be exactly these addresses; others stay as they are."""
    session.execute(
        delete(Replica).where(Replica.origin == SETTINGS, Replica.url.not_in(configured))
    )
    rows = {replica.url: replica for replica in list_replicas(session)}
    for url in configured:
        if url not in rows:
            row = Replica(id=new_id("rep"), url=url, origin=SETTINGS)
            try:
                with session.begin_nested():
                    session.add(row)
            except IntegrityError:  # another gateway, which starts at the same moment
                continue
        else:
            rows[url].origin = SETTINGS
    session.flush()


def record_gateway(
    session: Session,
    gateway_id: str,
    *,
    name: str,
    revision: int,
    in_flight: Mapping[str, int],
    replicas: Mapping[str, Any],
    now: datetime,
) -> None:
    """A gateway's sign of life; its first one clears away the rows of those long dead.

    Args:
        revision: of the routes that it works by.
        in_flight: engine name to running requests, of the same moment as ``revision``.
        replicas: address to state, error and resident engine names, as it sees them.
    """
    row = session.get(Gateway, gateway_id)
    if row is None:
        session.execute(delete(Gateway).where(Gateway.seen_at < now - KEEP_SILENT))
        row = Gateway(id=gateway_id, name=name)
        session.add(row)
    row.seen_at = now
    row.revision = revision
    row.in_flight = dict(in_flight)
    row.replicas = dict(replicas)
    session.flush()


def forget_gateway(session: Session, gateway_id: str) -> None:
    """A gateway that ends in good order has nothing in flight any more."""
    session.execute(delete(Gateway).where(Gateway.id == gateway_id))


def live_gateways(
    session: Session, *, now: datetime, silent_after: timedelta = SILENT_AFTER
) -> Sequence[Gateway]:
    """Those seen lately, oldest first."""
    alive = Gateway.seen_at >= now - silent_after
    return session.scalars(select(Gateway).where(alive).order_by(Gateway.id)).all()


def is_let_go(
    session: Session,
    engine_name: str,
    revision: int,
    *,
    now: datetime,
    silent_after: timedelta = SILENT_AFTER,
) -> bool:
    """Whether no gateway will ever use a version again, and no replica holds it.

    True when every gateway seen lately routes by ``revision`` or newer, has nothing of the version
    in flight, and sees it on no replica.

    Args:
        revision: of the routes (:func:`server.services.registry.snapshot_revision`) from which on
            the version is not routed to.
    """
    return all(
        gateway.revision >= revision
        and not gateway.in_flight.get(engine_name)
        and not any(engine_name in seen["resident"] for seen in gateway.replicas.values())
        for gateway in live_gateways(session, now=now, silent_after=silent_after)
    )


def _checked(url: str) -> str:
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or len(url) > MAX_URL or any(c <= " " or c > "~" for c in url):
        raise InvalidRequest("url must be an address such as http://10.0.0.7:8000.", "url")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest(
            "url must not carry a name or a password; the engines' key is "
            "EVERLEARN_ENGINE__API_KEY.",
            "url",
        )
    if parts.query or parts.fragment:
        raise InvalidRequest("url must have no query and no fragment.", "url")
    return url
