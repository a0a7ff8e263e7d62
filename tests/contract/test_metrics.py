"""GET /metrics on a running gateway: who may read it, and that what happens is in it."""

import time
from collections.abc import Iterator

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.services import keys
from tests.support.fake_engine import FakeEngine
from tests.support.world import CHAT_KEY, KEY, World, wait_for

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def client(world: World) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=world.gateway.url, headers=headers, timeout=30) as client:
        yield client


class Metrics:
    """What one look at /metrics tells."""

    def __init__(self, client: httpx2.Client) -> None:
        answer = client.get("/metrics")
        assert answer.status_code == 200, answer.text
        self.text = answer.text
        self._samples: Samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the series that have these labels."""
        wanted = frozenset(labels.items())
        return sum(
            value
            for (found, has), value in self._samples.items()
            if found == name and wanted <= has
        )


def chat(client: httpx2.Client, **fields: object) -> httpx2.Response:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return client.post("/v1/chat/completions", json=body)


def test_only_the_operator_reads_metrics(world: World, client: httpx2.Client) -> None:
    with world.database.unit_of_work() as session:
        _, reader = keys.create_key(session, "prometheus", ["read"])
        _, tenants = keys.create_key(session, "acme", ["read"], owner="acme")

    def status(key: str) -> tuple[int, str]:
        answer = client.get("/metrics", headers={"authorization": f"Bearer {key}"})
        is_text = answer.headers["content-type"].startswith("text/plain")
        return answer.status_code, "" if is_text else answer.json()["error"]["code"]

    assert status(reader) == (200, "")
    assert status(CHAT_KEY) == (403, "insufficient_scope")
    assert status(tenants) == (403, "foreign_tenant")
    assert status("el_unknown") == (401, "invalid_api_key")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_request_is_counted_once_under_its_version(
    client: httpx2.Client, is_stream: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if is_stream else {}
    assert chat(client, stream=is_stream, **options).status_code == 200

    seen = Metrics(client)

    labels = {"line": "smollm2", "version": "smollm2@v1"}
    where = {"endpoint": "/v1/chat/completions", "arm": "champion"}
    assert seen("everlearn_requests_total") == 1
    assert seen("everlearn_requests_total", outcome="complete", **where, **labels) == 1
    assert seen("everlearn_request_seconds_count", **labels) == 1
    assert seen("everlearn_first_byte_seconds_count", **labels) == 1
    assert seen("everlearn_tokens_total", kind="completion", **labels) > 0


def test_what_the_engine_refuses_is_counted_as_its_error(
    client: httpx2.Client, engine: FakeEngine
) -> None:
    engine.lose_adapters()
    engine.refuses_load = 500

    assert chat(client).status_code >= 400

    assert Metrics(client)("everlearn_requests_total", outcome="engine_error") == 1


def test_loads_and_residents_are_told_by_replica(world: World, client: httpx2.Client) -> None:
    wait_for(lambda: Metrics(client)("everlearn_resident_versions") == 2)

    seen = Metrics(client)

    assert seen("everlearn_adapter_load_seconds_count") == 2
    assert seen("everlearn_replica_state", state="healthy") == 1


def test_a_swap_is_timed_and_its_drain_ends_with_the_last_stream(
    client: httpx2.Client, engine: FakeEngine
) -> None:
    chat(client)
    engine.words, engine.token_s = 40, 0.02
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert Metrics(client)("everlearn_leases", version="smollm2@v1") == 1
        moved = client.post("/api/v1/adapters/smollm2/promote", json={"version": "v2"})
        assert moved.status_code == 200, moved.text
        began = time.monotonic()
        assert Metrics(client)("everlearn_drain_seconds_count") == 0
        for _ in lines:
            pass
        drained_s = time.monotonic() - began

    wait_for(lambda: Metrics(client)("everlearn_drain_seconds_count") == 1)
    seen = Metrics(client)
    assert seen("everlearn_swap_seconds_count", kind="promote") == 1
    assert 0 < seen("everlearn_drain_seconds_sum") < drained_s + 1
    assert seen("everlearn_leases") == 0


def test_what_fails_on_the_way_is_counted_by_stage(
    client: httpx2.Client, engine: FakeEngine
) -> None:
    wait_for(lambda: Metrics(client)("everlearn_resident_versions") == 2)
    engine.refuses_load = 500
    engine.lose_adapters()

    refused = client.post("/api/v1/adapters/smollm2/promote", json={"version": "v2"})

    assert refused.status_code >= 400
    assert Metrics(client)("everlearn_swap_errors_total", stage="load") >= 1
    assert Metrics(client)("everlearn_swap_errors_total", stage="move") == 0


def test_metrics_are_told_while_the_database_is_away(
    world: World, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat(client)

    def fails(_: object) -> None:
        raise OSError("away")

    monkeypatch.setattr("server.services.figures.read", fails)

    seen = Metrics(client)

    assert seen("everlearn_requests_total") == 1
    assert "everlearn_runs{" not in seen.text


def test_captured_interactions_reach_the_database(client: httpx2.Client) -> None:
    chat(client)

    wait_for(lambda: Metrics(client)("everlearn_capture_segments_waiting") == 0)
    assert Metrics(client)("everlearn_capture_dropped_total") == 0
