"""Keys: shown once, stored as a hash, closed for good."""

import pytest

from server.core.errors import InvalidRequest, RowNotFound, SetupError
from server.core.security import Scope, mint_key, redacted
from server.db import ApiKey
from server.db.session import Database
from server.services import keys
from server.services.keys import Limits

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


def test_a_given_admin_key_of_a_tenant_says_so(database: Database) -> None:
    with database.unit_of_work() as session:
        keys.add_key(session, "tenant", [Scope.ADMIN], secret=GIVEN, owner="acme")

    with (
        pytest.raises(SetupError, match="belongs to the tenant acme"),
        database.unit_of_work() as session,
    ):
        keys.ensure_admin_key(session, GIVEN)


def test_a_tenants_admin_does_not_stand_in_for_the_operator(database: Database) -> None:
    with database.unit_of_work() as session:
        keys.create_key(session, "tenant", [Scope.ADMIN], owner="acme")
    with database.unit_of_work() as session:
        assert keys.ensure_admin_key(session, None) is not None


def test_a_key_carries_its_owner_its_limits_and_its_consent(database: Database) -> None:
    limits = Limits(requests_per_minute=3, tokens_per_minute=40, token_budget=500)
    with database.unit_of_work() as session:
        _, secret = keys.create_key(
            session, "bot", ["chat"], owner="acme", allows_learning=False, limits=limits
        )
    with database.unit_of_work() as session:
        principal = keys.authenticate(session, secret)

    assert principal is not None
    assert (principal.owner, principal.allows_learning) == ("acme", False)
    assert (principal.limits, principal.tokens_used) == (limits, 0)


def test_a_tenant_finds_only_its_own_keys(database: Database) -> None:
    with database.unit_of_work() as session:
        mine, _ = keys.create_key(session, "mine", ["chat"], owner="acme")
        theirs, _ = keys.create_key(session, "theirs", ["chat"], owner="globex")
        operators, _ = keys.create_key(session, "operator's", ["chat"])
        session.flush()

        assert list(keys.list_keys(session, tenant="acme")) == [mine]
        assert len(keys.list_keys(session)) == 3
        for foreign in (theirs, operators):
            with pytest.raises(RowNotFound):
                keys.revoke_key(session, foreign.id, tenant="acme")
            with pytest.raises(RowNotFound):
                keys.change_key(session, foreign.id, {"token_budget": None}, tenant="acme")


def test_spent_tokens_add_up_and_an_unknown_key_is_passed_over(database: Database) -> None:
    with database.unit_of_work() as session:
        key, secret = keys.create_key(session, "bot", ["chat"])
        session.flush()
        keys.add_tokens_used(session, {key.id: 40})
        sums = keys.add_tokens_used(session, {key.id: 2, "key_gone": 9})
    with database.unit_of_work() as session:
        principal = keys.authenticate(session, secret)

    assert sums == {key.id: 42}
    assert principal is not None
    assert principal.tokens_used == 42


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
