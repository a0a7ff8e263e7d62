"""Trials through the gateway: who gets which version, what users notice, what the judge does of it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import httpx2
import pytest
from sqlalchemy import select, update

from server.core.settings import EngineSettings, RolloutSettings, Settings
from server.db import Feedback, Interaction, Trial, VersionStatus
from server.services import experience, registry, retention
from tests.conftest import RecordingQueue
from tests.support.factories import make_version
from tests.support.world import CHAT_KEY, KEY, World, wait_for
from workers import trials as judging
from workers.context import WorkerContext

V1, V2 = "smollm2@v1.00000000", "smollm2@v2.00000000"


class Line:
    """The world's line, as an admin and its users reach it."""

    def __init__(self, world: World, client: httpx2.Client) -> None:
        self.world, self.client = world, client

    def order(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        return self.client.request(method, f"/api/v1/adapters/smollm2{path}", json=body)

    def start(self, **fields: Any) -> dict[str, Any]:
        answer = self.order("POST", "/trial", {"version": "v2", **fields})
        assert answer.status_code == 201, answer.text
        wait_for(lambda: V2 in self.world.engine.adapters)
        runtime = self.world.app.state.runtime
        route = runtime.route("smollm2@challenger")
        wait_for(lambda: runtime.holds(route))
        return cast(dict[str, Any], answer.json())

    def trial(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.order("GET", "/trials").json()["data"][0])

    def ask(self, said: str = "Hi", *, more: list[Any] | None = None, **fields: Any) -> Any:
        messages = [{"role": "user", "content": said}, *(more or [])]
        body = {"model": "smollm2", "messages": messages, **fields}
        headers = {"authorization": f"Bearer {CHAT_KEY}"}
        return self.client.post("/v1/chat/completions", json=body, headers=headers)

    def ask_many(self, count: int, **fields: Any) -> list[Any]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda n: self.ask(f"conversation {n}", **fields), range(count)))

    def listed(self, **filters: Any) -> list[dict[str, Any]]:
        answer = self.client.get("/api/v1/interactions", params={"limit": 1000, **filters})
        return cast(list[dict[str, Any]], answer.json()["data"])

    def copies(self) -> list[dict[str, Any]]:
        return self.listed(arm="shadow")

    def judge(self) -> None:
        """What the worker's tick does, as if it were due."""
        with self.world.database.unit_of_work() as session:
            session.execute(update(Trial).values(judged_at=None))
        settings = Settings(
            _env_file=None,
            engine=EngineSettings(url=next(iter(self.world.app.state.runtime.fleet.replicas))),
        )
        context = WorkerContext(settings, self.world.database, RecordingQueue(), "test")
        judging.judge_trials(context)
        judging.watch_promotions(context)


@pytest.fixture
def line(world: World) -> Iterator[Line]:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=world.gateway.url, headers=headers, timeout=30) as client:
        yield Line(world, client)


def versions(answers: list[Any]) -> list[str]:
    assert {answer.status_code for answer in answers} == {200}
    return [answer.headers["x-everlearn-version"] for answer in answers]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# Canary


def test_a_canary_answers_its_share_and_sticks_to_the_conversation(line: Line) -> None:
    line.start(share=25)

    first = line.ask_many(400)
    turns = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And then?"}]
    second = line.ask_many(400, more=turns)

    drawn = versions(first)
    assert 60 <= drawn.count("smollm2@v2") <= 140
    assert set(drawn) == {"smollm2@v1", "smollm2@v2"}
    assert versions(second) == drawn
    for answer, version in zip(first, drawn, strict=True):
        arm = "challenger" if version == "smollm2@v2" else "champion"
        assert answer.headers["x-everlearn-arm"] == arm
    line.world.interactions(800)
    rows = line.listed(arm="challenger")
    assert {row["version"] for row in rows} == {"smollm2@v2"}
    assert len(rows) == 2 * drawn.count("smollm2@v2")


def test_the_arm_is_told_only_while_there_is_a_trial(line: Line) -> None:
    assert "x-everlearn-arm" not in line.ask().headers
    line.start(share=100)

    assert line.ask().headers["x-everlearn-arm"] == "challenger"
    pinned = line.ask(model="smollm2@v1")
    assert (pinned.headers["x-everlearn-version"], pinned.headers["x-everlearn-arm"]) == (
        "smollm2@v1",
        "pinned",
    )
    assert line.order("DELETE", "/trial").status_code == 200
    after = line.ask()
    assert "x-everlearn-arm" not in after.headers
    assert after.headers["x-everlearn-version"] == "smollm2@v1"


@pytest.mark.parametrize("loses_it", [False, True], ids=["known", "not yet known"])
def test_a_challenger_that_is_not_there_costs_no_user_anything(line: Line, loses_it: bool) -> None:
    line.start(share=100)
    engine = line.world.engine
    engine.refuses_load = 400
    del engine.adapters[V2]
    if not loses_it:
        runtime = line.world.app.state.runtime
        route = runtime.route("smollm2@challenger")
        wait_for(lambda: not runtime.holds(route))

    with at_most(5):
        answers = [line.ask(f"conversation {n}") for n in range(5)]

    assert set(versions(answers)) == {"smollm2@v1"}
    assert {answer.headers["x-everlearn-arm"] for answer in answers} == {"champion"}
    rows = line.world.interactions(5)
    assert {(row.arm, row.version, row.outcome) for row in rows} == {
        ("champion", "smollm2@v1", "complete")
    }


def imported_version(line: Line) -> None:
    """v4, which sat no exam."""
    with line.world.database.unit_of_work() as session:
        adapter = registry.get_adapter(session, "smollm2")
        make_version(session, adapter, status=VersionStatus.UNPROVEN)


def test_a_version_without_an_exam_serves_while_it_is_on_trial(line: Line) -> None:
    imported_version(line)
    wait_for(lambda: line.ask(model="smollm2@v4").status_code == 409)

    started = line.order("POST", "/trial", {"version": "v4", "share": 100})

    assert started.status_code == 201, started.text
    for name in ("smollm2", "smollm2@challenger", "smollm2@v4"):
        assert line.ask(model=name).headers["x-everlearn-version"] == "smollm2@v4"
    line.order("DELETE", "/trial")
    assert line.ask(model="smollm2@v4").status_code == 409
    assert line.ask(model="smollm2@challenger").status_code == 404


def test_a_version_that_the_engine_refuses_comes_on_no_trial(line: Line) -> None:
    imported_version(line)
    line.world.engine.refuses_load = 400

    refused = line.order("POST", "/trial", {"version": "v4"})

    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "adapter_refused")
    shown = line.order("GET", "").json()
    assert (shown["trial"], shown["aliases"]) == (None, {"champion": "smollm2@v1"})


# Shadow


def test_a_shadow_is_seen_by_nobody_and_never_learnt_from(line: Line) -> None:
    line.start(mode="shadow", share=100)

    answer = line.ask("Who keeps the light?")

    assert answer.headers["x-everlearn-version"] == "smollm2@v1"
    [original, copy] = line.world.interactions(2)
    assert (original.arm, original.version) == ("champion", "smollm2@v1")
    assert (copy.arm, copy.shadow_of, copy.version) == ("shadow", original.id, "smollm2@v2")
    assert (copy.may_learn, copy.key_id, copy.is_stream) == (False, original.key_id, False)
    assert copy.reply.startswith("smollm2@v2")
    sent = line.world.engine.bodies[-1]
    assert (sent["model"], sent["stream"], sent["priority"]) == (V2, False, 100)
    assert [row["id"] for row in line.listed()] == [original.id]
    assert [row["id"] for row in line.listed(arm="champion")] == [original.id]
    assert [row["id"] for row in line.copies()] == [copy.id]
    with line.world.database.unit_of_work() as session:
        adapter = registry.get_adapter(session, "smollm2")
        learnt = [
            found.interaction_id
            for split in ("train", "gate")
            for found in experience.learnable(session, adapter, split=split)
        ]
    assert learnt == [original.id]


def test_nobody_judges_a_copy(line: Line) -> None:
    line.start(mode="shadow", share=100)
    line.ask()
    [_, copy] = line.world.interactions(2)

    for target in (copy.id, copy.completion_id):
        answer = line.client.post(
            "/api/v1/feedback", json={"completion_id": target, "thumb": "down"}
        )
        assert answer.status_code in (200, 202)  # as for a reply that is on its way
    with line.world.database.unit_of_work() as session:
        retention.tend_feedback(session)
    with line.world.database.unit_of_work() as session:
        assert [row.interaction_id for row in session.scalars(select(Feedback))] == [None]


def test_a_stream_is_copied_whole_after_its_end(line: Line) -> None:
    line.start(mode="shadow", share=100)

    answer = line.ask(stream=True)

    assert answer.text.endswith("data: [DONE]\n\n")
    [original, copy] = line.world.interactions(2)
    assert (original.is_stream, copy.is_stream) == (True, False)
    assert "stream_options" not in line.world.engine.bodies[-1]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "The light"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}),
    ],
)
def test_other_endpoints_are_copied_too(line: Line, path: str, body: dict[str, Any]) -> None:
    line.start(mode="shadow", share=100)

    assert line.client.post(path, json={"model": "smollm2", **body}).status_code == 200

    [original, copy] = line.world.interactions(2)
    assert (copy.shadow_of, copy.endpoint) == (original.id, original.endpoint)


def test_what_is_not_to_be_stored_is_not_copied(line: Line) -> None:
    line.start(mode="shadow", share=100)

    line.ask(store=False)
    line.ask(temperature=-1)  # refused: there is nothing to compare with
    line.ask(model="smollm2@v1")
    line.ask()

    rows = line.world.interactions(5)
    assert [row.arm for row in rows].count("shadow") == 1
    assert {body["model"] for body in line.world.engine.bodies[-2:]} == {V1, V2}


def test_a_challenger_that_hangs_holds_up_nobody(line: Line) -> None:
    line.start(mode="shadow", share=100)
    line.world.engine.hanging_model = V2
    shadows = line.world.app.state.shadows

    with at_most(10):
        answers = line.ask_many(40)

    assert set(versions(answers)) == {"smollm2@v1"}
    wait_for(lambda: shadows.dropped == 36)
    assert [row.arm for row in line.world.interactions(40)] == ["champion"] * 40
    in_flight = [body for body in line.world.engine.bodies if body["model"] == V2]
    assert len([body for body in in_flight if body.get("priority") == 100]) == 4


def test_a_stopping_gateway_lets_its_copies_go(line: Line) -> None:
    line.start(mode="shadow", share=100)
    engine = line.world.engine
    engine.hanging_model = V2
    line.ask()
    wait_for(lambda: engine.bodies[-1]["model"] == V2)

    with at_most(8):
        line.world.gateway.server.should_exit = True
        wait_for(lambda: engine.cancelled == 1)


def test_a_copy_costs_its_key_nothing(line: Line) -> None:
    minted = line.client.post(
        "/api/v1/keys", json={"name": "thrifty", "scopes": ["chat"], "requests_per_minute": 9}
    ).json()
    line.start(mode="shadow", share=100)

    headers = {"authorization": f"Bearer {minted['key']}"}
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]}
    left = [
        line.client.post("/v1/chat/completions", json=body, headers=headers).headers[
            "x-ratelimit-remaining-requests"
        ]
        for _ in range(3)
    ]

    line.world.interactions(6)
    assert left == ["8", "7", "6"]


def test_a_deleted_interaction_takes_its_copies_with_it(line: Line) -> None:
    line.start(mode="shadow", share=100)
    line.ask("My name is Odile.")
    line.ask("My name is Ada.")
    rows = line.world.interactions(4)
    first, second = [row for row in rows if row.arm == "champion"]

    assert line.client.delete(f"/api/v1/interactions/{first.id}").status_code == 200
    assert line.client.post(f"/api/v1/interactions/{second.id}/redact").status_code == 200

    left = {row.id: row for row in line.world.interactions(2)}
    assert len(left) == 2
    assert all(row.redacted_at and not row.reply for row in left.values())


# The judge, from the traffic to the end


def test_a_challenger_that_fails_is_aborted_and_users_go_on(line: Line) -> None:
    line.start(share=50)
    line.world.engine.failing_model = V2
    answers = line.ask_many(80)
    assert {answer.status_code for answer in answers} == {200, 502}
    line.world.interactions(80)

    line.judge()

    trial = line.trial()
    assert (trial["state"], trial["ended_by"]) == ("aborted", "judge")
    assert trial["outcome"].startswith("failed: 100.0% against 0.0%")
    assert trial["evidence"]["failed"]["harm_e"] > 80
    shown = line.order("GET", "").json()
    assert (shown["champion"], shown["trial"]) == ("smollm2@v1", None)
    status = {version["name"]: version["status"] for version in shown["versions"]}
    assert status["smollm2@v2"] == "rejected"
    runtime = line.world.app.state.runtime
    wait_for(lambda: not runtime.route("smollm2").is_on_trial)
    assert set(versions(line.ask_many(20))) == {"smollm2@v1"}


def set_rollout(line: Line, **values: Any) -> None:
    # Wide margins and few replies: the judge's own sharpness is tested by itself.
    wide = {"error_margin": 0.2, "format_margin": 0.2, "latency_margin": 0.9, "min_requests": 20}
    answer = line.order("PATCH", "", {"rollout": {**wide, **values}})
    assert answer.status_code == 200, answer.text


def test_a_sound_challenger_is_promoted(line: Line) -> None:
    set_rollout(line)
    line.start(share=50)
    line.ask_many(160)
    line.world.interactions(160)

    line.judge()

    assert (line.trial()["state"], line.trial()["verdict"]) == ("promoted", "promote")
    shown = line.order("GET", "").json()
    assert (shown["champion"], shown["aliases"]) == ("smollm2@v2", {"champion": "smollm2@v2"})
    assert (shown["events"][0]["actor"], shown["events"][0]["kind"]) == ("judge", "promote")
    assert set(versions(line.ask_many(5))) == {"smollm2@v2"}


def test_a_sound_challenger_waits_for_a_yes_where_one_is_needed(line: Line) -> None:
    set_rollout(line, needs_approval=True)
    line.start(share=50)
    early = line.order("POST", "/trial/approve", {})
    assert (early.status_code, early.json()["error"]["code"]) == (409, "no_trial_waits")
    line.ask_many(160)
    line.world.interactions(160)

    line.judge()

    waiting = line.order("GET", "/trial").json()
    assert waiting["state"] == "waiting"
    runtime = line.world.app.state.runtime
    wait_for(lambda: not runtime.route("smollm2").is_on_trial)
    assert set(versions(line.ask_many(10))) == {"smollm2@v1"}
    yes = line.order("POST", "/trial/approve", {"reason": "looks good"})
    assert (yes.status_code, yes.json()["state"]) == (200, "promoted")
    assert set(versions(line.ask_many(10))) == {"smollm2@v2"}
    event = line.order("GET", "").json()["events"][0]
    assert (event["reason"], event["actor"][:4]) == ("looks good", "key:")


def test_a_no_leaves_everything_as_it_was(line: Line) -> None:
    line.start(share=10)

    ended = line.order("DELETE", "/trial")

    assert (ended.json()["state"], ended.json()["version"]) == ("aborted", "smollm2@v2")
    assert line.order("DELETE", "/trial").status_code == 404
    assert line.order("GET", "/trial").status_code == 404
    assert [trial["state"] for trial in line.order("GET", "/trials").json()["data"]] == ["aborted"]
    assert line.ask(model="smollm2@v2").status_code == 200


def test_the_watch_takes_a_bad_promotion_back(line: Line) -> None:
    line.ask_many(40)
    line.world.interactions(40)
    moved = line.order("POST", "/promote", {"version": "v2"})
    assert moved.status_code == 200
    line.world.engine.failing_model = V2
    assert {answer.status_code for answer in line.ask_many(40)} == {502}
    line.world.interactions(80)

    line.judge()

    event = line.order("GET", "").json()["events"][0]
    assert (event["kind"], event["actor"], event["to_version"]) == (
        "rollback",
        "watch",
        "smollm2@v1",
    )
    assert set(versions(line.ask_many(5))) == {"smollm2@v1"}


def test_the_watch_holds_new_replies_against_the_last_old_ones(line: Line) -> None:
    line.ask_many(40)
    line.world.engine.ends_by = "length"
    cut_off = line.ask_many(20)
    assert cut_off[0].json()["choices"][0]["finish_reason"] == "length"
    line.world.interactions(60)
    assert line.order("POST", "/promote", {"version": "v2"}).status_code == 200
    line.ask_many(20)
    line.world.interactions(80)

    line.judge()

    assert line.order("GET", "").json()["events"][0]["kind"] == "promote"


# Orders that cannot be taken


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"version": "v2", "share": 0}, 400, "invalid_request", "share"),
        ({"version": "v2", "share": 100.5}, 400, "invalid_request", "share"),
        ({"version": "v2", "share": -3}, 400, "invalid_request", "share"),
        ({"version": "v2", "share": "many"}, 400, "invalid_request", "share"),
        ({"version": "v2", "mode": "blue"}, 400, "invalid_request", "mode"),
        ({"version": "v2", "mode": "hold"}, 400, "invalid_request", "mode"),
        ({"version": "v9"}, 404, "not_found", None),
        ({"version": "latest"}, 400, "invalid_request", "version"),
        ({"version": "base"}, 400, "invalid_request", "version"),
        ({"version": "v1"}, 409, "already_champion", None),
        ({"version": "v3"}, 409, "version_not_servable", None),
        ({"version": "v2", "colour": 1}, 400, "unknown_field", "colour"),
        ({}, 400, "invalid_request", "version"),
    ],
    ids=str,
)
def test_a_trial_that_makes_no_sense_is_refused(
    line: Line, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    answer = line.order("POST", "/trial", body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert line.order("GET", "/trials").json()["data"] == []


def test_a_second_trial_is_refused_by_the_name_of_the_first(line: Line) -> None:
    line.start()

    answer = line.order("POST", "/trial", {"version": "v2", "mode": "shadow"})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (409, "trial_open")
    assert "smollm2@v2" in error["message"]


@pytest.mark.parametrize(
    ("rollout", "param"),
    [
        ({"share": 0}, "rollout.share"),
        ({"mode": "blue"}, "rollout.mode"),
        ({"colour": 1}, "rollout.colour"),
        ([], "rollout"),
    ],
    ids=str,
)
def test_a_rollout_that_makes_no_sense_is_refused(line: Line, rollout: Any, param: str) -> None:
    answer = line.order("PATCH", "", {"rollout": rollout})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert line.order("GET", "").json()["rollout"] is None


def test_a_line_shows_and_forgets_its_own_rollout(line: Line) -> None:
    line.order("PATCH", "", {"rollout": {"mode": "canary", "share": 5}})
    assert line.order("GET", "").json()["rollout"] == {"mode": "canary", "share": 5.0}

    line.order("PATCH", "", {"rollout": None})

    assert line.order("GET", "").json()["rollout"] is None
    assert RolloutSettings().mode == "direct"


def test_trials_are_in_the_audit_trail(line: Line) -> None:
    line.start(share=20, reason="to see")
    line.order("DELETE", "/trial")
    line.order("PATCH", "", {"rollout": {"mode": "shadow"}})

    events = line.client.get("/api/v1/audit").json()["data"]

    assert [(event["action"], event["target"]) for event in events] == [
        ("adapter.change", "smollm2"),
        ("trial.abort", "smollm2"),
        ("trial.start", "smollm2"),
    ]
    assert events[2]["detail"] == {
        "version": "smollm2@v2",
        "mode": "canary",
        "share": 20,
        "force": False,
    }


def test_a_tenant_neither_sees_nor_makes_trials_of_everybodys_line(line: Line) -> None:
    line.start()
    minted = line.client.post(
        "/api/v1/keys", json={"name": "acme", "scopes": ["admin", "chat"], "owner": "acme"}
    ).json()
    headers = {"authorization": f"Bearer {minted['key']}"}

    def ask(method: str, path: str, body: Any = None) -> httpx2.Response:
        url = f"/api/v1/adapters/smollm2{path}"
        return line.client.request(method, url, json=body, headers=headers)

    assert ask("GET", "").json()["trial"] is None
    assert ask("GET", "/trial").status_code == 404
    assert ask("GET", "/trials").status_code == 404
    for method, path, body in (
        ("POST", "/trial", {"version": "v2"}),
        ("DELETE", "/trial", None),
        ("POST", "/trial/approve", {}),
        ("PATCH", "", {"rollout": None}),
    ):
        answer = ask(method, path, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_tenant")
    with line.world.database.unit_of_work() as session:
        assert session.scalars(select(Trial)).one().state == "running"
        assert session.scalars(select(Interaction)).all() == []
