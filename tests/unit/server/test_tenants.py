"""Tenants: what one sends never trains another's line, nor everybody's; and who may see which line."""

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.core.clock import utc_now
from server.core.errors import ForeignTenant, ModelNotFound, NothingToLearn, RowNotFound
from server.core.settings import LearningSettings, Settings
from server.db import AdaptationRun, Adapter, Base, Document, RunDocument
from server.db.session import Database
from server.engine.routing import public_models, resolve
from server.services import documents, policies, registry, runs
from server.services.bootstrap import create_line, ensure_line
from server.services.tenants import owner_for, sees
from tests.conftest import BASE_HASH, RecordingQueue
from tests.support.factories import make_document, make_run, make_version
from workers.material import collect

OWNERS = (None, "acme", "globex")
SETTINGS = LearningSettings(quiet_s=0)


@pytest.fixture
def lines(database: Database, settings: Settings, adapter: Adapter) -> dict[str | None, Adapter]:
    """A line of every owner."""
    with database.unit_of_work() as session:
        made = {
            owner: create_line(session, settings, f"{owner}-line", owner=owner)
            for owner in ("acme", "globex")
        }
    return {None: adapter, **made}


def start_due(session: Session) -> list[AdaptationRun]:
    later = utc_now() + timedelta(seconds=1)
    return policies.queue_due_runs(session, SETTINGS, queue=RecordingQueue(), now=later)


def take(session: Session, run: AdaptationRun) -> list[str]:
    owned = runs.claim(session, run.id, worker="w", lease=timedelta(seconds=30))
    assert owned is not None
    return runs.take_documents(session, owned)


def test_a_run_takes_the_documents_of_its_lines_owner_and_no_other(
    database: Database, lines: dict[str | None, Adapter]
) -> None:
    with database.unit_of_work() as session:
        sent = {owner: make_document(session, "The words.", owner=owner).id for owner in OWNERS}
        taken = {owner: take(session, make_run(session, line)) for owner, line in lines.items()}

    assert taken == {owner: [document_id] for owner, document_id in sent.items()}
    assert len(set(sent.values())) == 3


@pytest.mark.parametrize("owner", OWNERS)
def test_a_tenants_document_starts_a_run_of_its_own_line_only(
    database: Database, lines: dict[str | None, Adapter], owner: str | None
) -> None:
    with database.unit_of_work() as session:
        make_document(session, owner=owner)

        started = start_due(session)

    assert [run.adapter_id for run in started] == [lines[owner].id]


def test_a_document_of_another_is_nothing_to_learn(
    database: Database, lines: dict[str | None, Adapter]
) -> None:
    with database.unit_of_work() as session:
        make_document(session, owner="acme")

        for owner in (None, "globex"):
            with pytest.raises(NothingToLearn):
                make_run(session, lines[owner])


def test_what_a_worker_trains_on_is_its_owners(
    database: Database, lines: dict[str | None, Adapter]
) -> None:
    with database.unit_of_work() as session:
        mine = make_document(session, "Acme's.", owner="acme")
        make_document(session, "Globex's.", owner="globex")
        make_document(session, "The operator's.")
        run = make_run(session, lines["acme"])
        owned = runs.claim(session, run.id, worker="w", lease=timedelta(seconds=30))
        assert owned is not None

        material = collect(session, owned, served="smollm2")

    assert [document.id for document in material.documents] == [mine.id]
    assert material.base_engine_name == "smollm2@base"


@given(
    sent=st.lists(st.tuples(st.sampled_from(OWNERS), st.integers(0, 4)), max_size=10),
    ordered=st.lists(st.sampled_from(OWNERS), max_size=4),
)
def test_whatever_is_sent_and_ordered_no_document_reaches_anothers_line(
    sent: list[tuple[str | None, int]], ordered: list[str | None]
) -> None:
    database = Database("sqlite://")
    Base.metadata.create_all(database.engine)
    settings = Settings(_env_file=None)
    with database.unit_of_work() as session:
        first = ensure_line(session, settings, base_path=Path("/b"), base_hash=BASE_HASH)
        lines = {None: first}
        for owner in ("acme", "globex"):
            lines[owner] = create_line(session, settings, f"{owner}-line", owner=owner)
        for owner, number in sent:
            make_document(session, f"Text {number}.", owner=owner)
        for owner in ordered:
            if documents.has_documents(session, owner=owner):
                make_run(session, lines[owner])
        start_due(session)
        for run in runs.list_runs(session):
            take(session, run)

        pairs = session.execute(
            select(Adapter.owner, Document.owner)
            .select_from(RunDocument)
            .join(AdaptationRun, AdaptationRun.id == RunDocument.run_id)
            .join(Adapter, Adapter.id == AdaptationRun.adapter_id)
            .join(Document, Document.id == RunDocument.document_id)
        ).all()

    assert {tuple(pair) for pair in pairs} == {(owner, owner) for owner, _ in sent}
    assert len(pairs) == len(set(sent))
    database.close_sync()


def test_two_lines_of_one_owner_both_learn_what_it_sends(
    database: Database, settings: Settings, adapter: Adapter
) -> None:
    with database.unit_of_work() as session:
        document = make_document(session)
        assert take(session, start_due(session)[0]) == [document.id]

        second = create_line(session, settings, "second", owner=None)
        [run] = start_due(session)

        assert run.adapter_id == second.id
        assert take(session, run) == [document.id]
        assert start_due(session) == []


def test_a_tenant_sees_everybodys_lines_and_its_own(
    database: Database, lines: dict[str | None, Adapter]
) -> None:
    with database.unit_of_work() as session:
        seen = {
            tenant: [line.name for line in registry.list_adapters(session, tenant=tenant)]
            for tenant in OWNERS
        }
        snapshot = registry.snapshot(session, resident_versions=1, served="smollm2")
        with pytest.raises(RowNotFound):
            registry.get_adapter(session, "acme-line", tenant="globex")
        with pytest.raises(RowNotFound):
            registry.own_adapter(session, "acme-line", tenant="globex")
        with pytest.raises(ForeignTenant, match="POST /api/v1/adapters"):
            registry.own_adapter(session, "smollm2", tenant="acme")

    assert seen == {
        None: ["acme-line", "globex-line", "smollm2"],
        "acme": ["acme-line", "smollm2"],
        "globex": ["globex-line", "smollm2"],
    }
    for tenant, names in seen.items():
        models = public_models(snapshot, tenant)
        assert [name for name in models if "@" not in name] == names
        assert all(resolve(snapshot, name, tenant) == route for name, route in models.items())
    with pytest.raises(ModelNotFound) as caught:
        resolve(snapshot, "acme-line@base", "globex")
    assert "There is globex-line and smollm2" in str(caught.value)


def test_every_line_over_the_served_weights_has_the_engines_one_base(
    database: Database, settings: Settings, lines: dict[str | None, Adapter]
) -> None:
    with database.unit_of_work() as session:
        make_version(session, lines["acme"])
        snapshot = registry.snapshot(session, resident_versions=1, served="smollm2")

        assert resolve(snapshot, "acme-line").engine_name == "smollm2@base"
        assert resolve(snapshot, "acme-line@base").version_name == "acme-line@base"
        assert resolve(snapshot, "acme-line@v1").engine_name == "acme-line@v1.00000000"


def test_a_line_over_other_weights_is_answered_by_no_other_base(
    database: Database, settings: Settings, adapter: Adapter
) -> None:
    renamed = settings.model_copy(
        update={"model": settings.model.model_copy(update={"name": "other"})}
    )
    with database.unit_of_work() as session:
        ensure_line(session, renamed, base_path=Path("/other"), base_hash="1" * 64)
        snapshot = registry.snapshot(session, resident_versions=1, served="other")

    assert resolve(snapshot, "other").engine_name == "other@base"
    assert resolve(snapshot, "smollm2").engine_name == "smollm2@base"  # which this engine has not


def test_weights_that_moved_are_found_by_every_line(
    database: Database, settings: Settings, lines: dict[str | None, Adapter], tmp_path: Path
) -> None:
    with database.unit_of_work() as session:
        ensure_line(session, settings, base_path=tmp_path / "moved", base_hash=BASE_HASH)
    with database.unit_of_work() as session:
        paths = {line.base_path for line in registry.list_adapters(session)}

    assert paths == {str(tmp_path / "moved")}


def test_who_sees_and_owns_what() -> None:
    assert sees(None, "acme")
    assert sees("acme", "acme")
    assert not sees("acme", None)
    assert not sees("acme", "globex")
    assert owner_for(None, None) is None
    assert owner_for(None, "acme") == owner_for("acme", None) == owner_for("acme", "acme") == "acme"
    with pytest.raises(ForeignTenant):
        owner_for("acme", "globex")
