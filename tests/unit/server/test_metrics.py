"""What Prometheus is told: counts by version, drains, bounded series, the text formats."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.core.clock import new_id
from server.core.metrics import Figures, Metrics, Moment, ReplicaMoment
from server.db import AdaptationRun, Adapter, Deletion, RunKind, Trial
from server.db.session import Database
from server.services import figures
from tests.support.factories import make_document, make_version


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    return Metrics(clock)


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def request(metrics: Metrics, number: int, outcome: str = "complete", **fields: Any) -> None:
    version, path = f"smollm2@v{number}", "/v1/chat/completions"
    metrics.request_done(
        "smollm2", version, "champion", path, outcome, **{"seconds": 0.2, **fields}
    )


def count(metrics: Metrics, number: int, outcome: str = "complete") -> float | None:
    return sample(
        metrics,
        "everlearn_requests_total",
        line="smollm2",
        version=f"smollm2@v{number}",
        arm="champion",
        endpoint="/v1/chat/completions",
        outcome=outcome,
    )


def test_requests_are_counted_by_version_and_outcome(metrics: Metrics) -> None:
    request(metrics, 1, first_byte_s=0.02, prompt_tokens=3, completion_tokens=8)
    request(metrics, 1, first_byte_s=0.07, prompt_tokens=4, completion_tokens=None)
    request(metrics, 2, "engine_error")

    assert [count(metrics, 1), count(metrics, 2), count(metrics, 2, "engine_error")] == [2, None, 1]
    one, two = ({"line": "smollm2", "version": f"smollm2@v{number}"} for number in (1, 2))
    assert sample(metrics, "everlearn_request_seconds_count", **one) == 2
    assert sample(metrics, "everlearn_first_byte_seconds_bucket", le="0.05", **one) == 1
    assert sample(metrics, "everlearn_first_byte_seconds_count", **two) == 0
    assert sample(metrics, "everlearn_tokens_total", kind="prompt", **one) == 7
    assert sample(metrics, "everlearn_tokens_total", kind="completion", **one) == 8


def test_versions_that_are_done_with_keep_no_series(metrics: Metrics) -> None:
    for number in (1, 2):
        request(metrics, number)

    metrics.keep_versions(["smollm2@v2"])
    text = metrics.render("", Moment())[0].decode()

    assert "smollm2@v1" not in text
    assert count(metrics, 2) == 1
    request(metrics, 1)
    assert count(metrics, 1) == 1  # not into a series that nobody reads any more


def test_a_drain_lasts_until_the_last_lease_ends(metrics: Metrics, clock: Clock) -> None:
    metrics.version_left("smollm2@v1.aa", is_busy=True)
    metrics.version_idle("smollm2@v2.bb")
    assert sample(metrics, "everlearn_drain_seconds_count") == 0
    clock.now += 7

    metrics.version_idle("smollm2@v1.aa")
    metrics.version_idle("smollm2@v1.aa")  # a pinned request, later

    assert sample(metrics, "everlearn_drain_seconds_count") == 1
    assert sample(metrics, "everlearn_drain_seconds_sum") == 7


def test_a_version_that_nothing_uses_drains_at_once(metrics: Metrics) -> None:
    metrics.version_left("smollm2@v1.aa", is_busy=False)

    assert sample(metrics, "everlearn_drain_seconds_bucket", le="0.01") == 1


def test_a_version_that_an_alias_comes_back_to_drains_no_more(metrics: Metrics) -> None:
    metrics.version_left("smollm2@v1.aa", is_busy=True)
    metrics.version_named("smollm2@v1.aa")
    metrics.version_idle("smollm2@v1.aa")

    assert sample(metrics, "everlearn_drain_seconds_count") == 0


def test_what_is_true_now_is_told_and_then_forgotten(metrics: Metrics) -> None:
    moment = Moment(
        replicas=[ReplicaMoment("http://a", "ready", 3)],
        leases={"smollm2@v1.aa": 2, "smollm2@base": 1, "my.line@v2.bb": 4},
        segments_waiting=5,
        records_dropped=1,
        figures=Figures(
            verdicts={("smollm2", "promote"): 2},
            trials={("smollm2", "canary", "running"): 1},
            runs={"queued": 3},
            deletions={"open": 1},
            documents={"quarantined": 2},
        ),
    )
    metrics.render("", moment)

    assert sample(metrics, "everlearn_replica_state", replica="http://a", state="ready") == 1
    assert sample(metrics, "everlearn_resident_versions", replica="http://a") == 3
    assert sample(metrics, "everlearn_leases", version="smollm2@v1") == 2
    assert sample(metrics, "everlearn_leases", version="my.line@v2") == 4
    assert sample(metrics, "everlearn_capture_segments_waiting") == 5
    assert sample(metrics, "everlearn_capture_dropped_total") == 1
    verdict = {"line": "smollm2", "verdict": "promote"}
    assert sample(metrics, "everlearn_gate_verdicts_total", **verdict) == 2
    trial = {"line": "smollm2", "mode": "canary", "state": "running"}
    assert sample(metrics, "everlearn_trial", **trial) == 1
    assert sample(metrics, "everlearn_runs", status="queued") == 3
    assert sample(metrics, "everlearn_deletions", state="open") == 1
    assert sample(metrics, "everlearn_documents", state="quarantined") == 2

    metrics.render("", Moment())

    assert sample(metrics, "everlearn_leases", version="smollm2@v1") is None
    assert sample(metrics, "everlearn_trial", **trial) is None


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=x.y", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text"),
    ],
)
def test_the_text_is_in_the_format_that_is_asked_for(
    metrics: Metrics, accept: str, media_type: str
) -> None:
    request(metrics, 1)

    body, kind = metrics.render(accept, Moment())

    assert kind.startswith(media_type)
    assert b'version="smollm2@v1"' in body
    assert body.endswith(b"# EOF\n") == kind.startswith("application/openmetrics-text")


def test_the_text_holds_every_metric_and_no_other(metrics: Metrics) -> None:
    request(metrics, 1, first_byte_s=0.1, prompt_tokens=1, completion_tokens=1)
    metrics.swapped("promote", 0.1)
    metrics.adapter_loaded("http://a", 0.1)

    text = metrics.render("", Moment())[0].decode()

    told = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(text)
    }
    assert told == set(metrics.names())


def test_what_stands_in_the_database_is_counted(database: Database, adapter: Adapter) -> None:
    with database.unit_of_work() as session:
        for verdict in ("promote", "reject", "reject", None):
            session.add(_run(adapter, verdict=verdict))
        session.add(_run(adapter, verdict="promote", kind=RunKind.REBUILD, status="failed"))
        version = make_version(session, adapter)
        session.add(_trial(adapter, version.id))
        session.add(_deletion())
        make_document(session)
        session.flush()

        found = figures.read(session)

    assert found.verdicts == {("smollm2", "promote"): 1, ("smollm2", "reject"): 2}
    assert found.trials == {("smollm2", "canary", "running"): 1}
    assert found.runs == {"queued": 4, "failed": 1, "succeeded": 1}
    assert found.deletions == {"open": 1}
    assert found.documents == {"ready": 1}


def test_an_empty_database_has_no_figures(database: Database) -> None:
    with database.unit_of_work() as session:
        assert figures.read(session) == Figures()


def _run(adapter: Adapter, **fields: Any) -> AdaptationRun:
    return AdaptationRun(
        id=new_id("run"),
        adapter_id=adapter.id,
        method="seal",
        config={},
        requested_by="test",
        **fields,
    )


def _trial(adapter: Adapter, version_id: str) -> Trial:
    return Trial(
        id=new_id("tri"),
        adapter_id=adapter.id,
        version_id=version_id,
        mode="canary",
        share=10,
        salt="s",
        started_by="test",
    )


def _deletion() -> Deletion:
    return Deletion(
        id=new_id("del"),
        kind="document",
        target="doc_1",
        version_ids=[],
        run_ids=[],
        actor="test",
    )
