"""Keys: shown once, stored as a hash, closed for good."""

import pytest

from server.core.errors import InvalidRequest, SetupError
from server.core.security import Scope, mint_key, redacted
from server.db import ApiKey
from server.db.session import Database
from server.services import keys

GIVEN = "el_given_in_the_settings_by_an_operator"


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
    for _ in range(2):  # at every start
        with database.unit_of_work() as session:
            assert keys.ensure_admin_key(session, GIVEN) is None
    with database.unit_of_work() as session:
        principal = keys.authenticate(session, GIVEN)

    assert principal is not None
    assert principal.may(Scope.ADMIN)


def test_a_given_admin_key_that_was_revoked_says_so(database: Database) -> None:
    with database.unit_of_work() as session:
        keys.ensure_admin_key(session, GIVEN)
    with database.unit_of_work() as session:
        keys.revoke_key(session, keys.list_keys(session)[0].id)

    with (
        pytest.raises(SetupError, match=r"EVERLEARN_ADMIN_KEY is the key .* revoked"),
        database.unit_of_work() as session,
    ):
        keys.ensure_admin_key(session, GIVEN)


def test_a_given_admin_key_that_is_no_admins_says_so(database: Database) -> None:
    with database.unit_of_work() as session:
        keys.add_key(session, "chat only", [Scope.CHAT], secret=GIVEN)

    with (
        pytest.raises(SetupError, match="the scopes chat and not admin"),
        database.unit_of_work() as session,
    ):
        keys.ensure_admin_key(session, GIVEN)


def test_a_short_admin_key_is_refused_without_being_shown(database: Database) -> None:
    with (
        pytest.raises(SetupError, match="24 are needed") as caught,
        database.unit_of_work() as session,
    ):
        keys.ensure_admin_key(session, "s3cret!")

    assert "s3cret!" not in str(caught.value)


@pytest.mark.parametrize("secret", ["s", "s3cret!", "x" * 24, mint_key()])
def test_a_hint_is_a_quarter_of_the_secret_at_most(secret: str) -> None:
    shown = redacted(secret).removesuffix("…")

    assert secret.startswith(shown)
    assert 4 * len(shown) <= len(secret)
