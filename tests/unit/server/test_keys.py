"""Keys: shown once, stored as a hash, closed for good."""

import pytest

from server.core.errors import InvalidRequest
from server.core.security import Scope
from server.db import ApiKey
from server.db.session import Database
from server.services import keys


def test_a_key_opens_what_its_scopes_say(database: Database) -> None:
    with database.unit_of_work() as session:
        _, secret = keys.create_key(session, "bot", ["chat"])
    with database.unit_of_work() as session:
        principal = keys.authenticate(session, secret)

    assert principal is not None
    assert principal.may(Scope.CHAT)
    assert not principal.may(Scope.ADMIN)


def test_the_secret_is_nowhere_in_the_row(database: Database) -> None:
    with database.unit_of_work() as session:
        key, secret = keys.create_key(session, "bot", ["chat", "ingest"])
        session.flush()
        row = {column.name: getattr(key, column.name) for column in ApiKey.__table__.columns}

    assert secret not in str(row)
    assert len(secret) > 40


def test_a_revoked_key_opens_nothing(database: Database) -> None:
    with database.unit_of_work() as session:
        key, secret = keys.create_key(session, "bot", ["admin"])
        session.flush()
        keys.revoke_key(session, key.id)
    with database.unit_of_work() as session:
        assert keys.authenticate(session, secret) is None


@pytest.mark.parametrize("scopes", [[], ["root"], ["chat", "root"]])
def test_unknown_scopes_are_refused(database: Database, scopes: list[str]) -> None:
    with pytest.raises(InvalidRequest), database.unit_of_work() as session:
        keys.create_key(session, "bot", scopes)


def test_the_admin_key_is_minted_once(database: Database) -> None:
    with database.unit_of_work() as session:
        first = keys.ensure_admin_key(session, None)
    with database.unit_of_work() as session:
        second = keys.ensure_admin_key(session, None)

    assert first is not None
    assert second is None


def test_a_given_admin_key_is_taken_and_not_shown(database: Database) -> None:
    with database.unit_of_work() as session:
        assert keys.ensure_admin_key(session, "el_given") is None
    with database.unit_of_work() as session:
        principal = keys.authenticate(session, "el_given")

    assert principal is not None
    assert principal.may(Scope.ADMIN)
