"""Any sequence of what can happen to a line, on a real gateway, against a model of what must come.

One server serves the whole test; every example lives on a line of its own. A rule gives one order
to both, and compares the two answers; what must hold after every step is an invariant. A further
rule needs a method of :class:`tests.support.life_model.Life` and one small method here.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from server.db import Interaction, RunDocument, VersionStatus
from server.services import promotion, registry
from tests.support.factories import make_version
from tests.support.fake_engine import Served, serve
from tests.support.life_model import (
    ACCEPTED,
    PROMOTE,
    ROLLBACK,
    Life,
    Order,
    Verdict,
    Version,
)
from tests.support.patient_engine import PatientEngine
from tests.support.world import KEY, World, ready, running_world, wait_for

FIRST_VERSIONS = ("servable", "servable", "rejected", "candidate", "unproven", "retired")
"""The statuses of v1 to v6 of every line."""

EVENTS_SHOWN = 50
"""Moves in the view of a line, newest first."""

SELECTORS = ("", "@base", "@champion", *(f"@v{number}" for number in range(1, 9)))
ODD_SELECTORS = ("@v1.00000000", "@v1.12345678", "@v99", "@nobody", "@", "@../v1")
TARGETS = ("v1", "v2", "v1", "v2", *(f"v{number}" for number in range(3, 9)), "base")
ODD_TARGETS = ("1", "v99", "newest", "v0")

selectors = st.sampled_from(SELECTORS + ODD_SELECTORS)
targets = st.sampled_from(TARGETS + ODD_TARGETS)
orders = st.one_of(
    st.builds(Order, st.just(PROMOTE), targets),
    st.builds(Order, st.just(ROLLBACK), st.none() | targets),
)
good_orders = st.builds(Order, st.just(PROMOTE), st.sampled_from(["v1", "v2", "base"]))
several_orders = st.one_of(
    st.lists(orders, min_size=2, max_size=3),
    st.lists(good_orders, min_size=2, max_size=2),
    orders.map(lambda order: [order, order]),  # only one of them can be first
)


@dataclass
class Place:
    """One server for all examples, over an engine that can be killed and started again."""

    engine: PatientEngine
    port: int
    world: World
    client: httpx2.Client
    running: ExitStack
    """Holds the engine's process."""
    lines: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def kill_engine(self) -> None:
        """Cut every stream, refuse every connection, forget every adapter."""
        self.engine.cut_held()
        self.running.close()
        self.engine.lose_adapters()

    def settle_loads(self) -> None:
        """Wait for what is being proven: a fault in the middle of a load is an error to whoever
        waits for it, and is tested by itself."""
        wait_for(lambda: not self.engine.unproven)

    def start_engine(self) -> None:
        """Have it serve again where it did, until the gateway takes it back."""
        self.running.enter_context(serve(self.engine.app(), self.port))
        wait_for(lambda: ready(self.world.gateway.url), 20)

    def chat(self, model: str, prompt: str = "Hi", *, is_stream: bool = False) -> "Said":
        request = self.request(model, prompt, is_stream=is_stream)
        return Said.of(self.client.send(request))

    def request(self, model: str, prompt: str, *, is_stream: bool) -> httpx2.Request:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": is_stream,
        }
        return self.client.build_request("POST", "/v1/chat/completions", json=body)


@dataclass(frozen=True)
class Said:
    """An answer to a chat, streamed or not."""

    verdict: Verdict
    version: str | None
    models: frozenset[str]
    """Every ``model`` that its body carries."""
    text: str
    interaction: str | None
    is_whole: bool

    @classmethod
    def of(cls, answer: httpx2.Response) -> "Said":
        content = answer.read().decode()
        if answer.status_code != 200:
            return cls(verdict_of(answer), None, frozenset(), "", None, False)
        events = [json.loads(content)] if "data: " not in content else _events(content)
        parts = [event["choices"][0] for event in events if event.get("choices")]
        texts = [part.get("message", part.get("delta", {})).get("content") for part in parts]
        return cls(
            ACCEPTED,
            answer.headers["x-everlearn-version"],
            frozenset(event["model"] for event in events if "model" in event),
            "".join(text for text in texts if text),
            answer.headers["x-everlearn-interaction"],
            is_whole=not any("error" in event for event in events),
        )


def _events(content: str) -> list[dict[str, Any]]:
    lines = (line for line in content.splitlines() if line.startswith("data: {"))
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def verdict_of(answer: httpx2.Response) -> Verdict:
    """Of any answer; a refusal must have OpenAI's shape, and a reason."""
    if answer.status_code < 400:
        return Verdict(200)
    body = answer.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    assert body["error"]["message"], body
    return Verdict(answer.status_code, body["error"]["code"])


@dataclass
class OpenStream:
    """A stream that has begun and is held at its first token."""

    prompt: str
    answer: httpx2.Response
    version: Version


class AdapterLife(RuleBasedStateMachine):
    """The rules. ``place`` is set by the test; ``life`` is the model."""

    place: Place

    def __init__(self) -> None:
        super().__init__()
        self.life = Life(f"life{next(self.place.lines)}")
        self.audited: list[tuple[str, str, str]] = []
        """(action, from, to) of every order that the API has accepted, oldest first."""
        self.replies: dict[str, str] = {}
        """Version by interaction, of every whole reply."""
        self.streams: list[OpenStream] = []
        self.engine_names = {self.life.base_engine_name}
        self.numbers = itertools.count()

    @property
    def path(self) -> str:
        return f"/api/v1/adapters/{self.life.line}"

    @initialize()
    def make_the_line(self) -> None:
        answer = self.place.client.post("/api/v1/adapters", json={"name": self.life.line})
        assert answer.status_code == 201, answer.text
        for status in FIRST_VERSIONS:
            self._register(status)

    # Requests

    @rule(selector=selectors, is_stream=st.booleans())
    def chat(self, selector: str, is_stream: bool) -> None:
        self._ask(self.life.line + selector, is_stream=is_stream)

    @rule(model=st.sampled_from(["nobody", "gpt-4o", "", "../../etc/passwd", "v1", "@v1"]))
    def chat_with_nobody(self, model: str) -> None:
        assert self.place.chat(model).verdict.status in (400, 404)

    @precondition(lambda self: len(self.streams) < 3 and self.life.has_engine)
    @rule(selector=st.sampled_from(["", "@v1", "@v2", "@base"]))
    def begin_a_stream(self, selector: str) -> None:
        prompt = f"hold {self.life.line} {next(self.numbers)}"
        model = self.life.line + selector
        verdict, versions = self.life.chat(model)
        if not verdict.is_accepted:
            return
        self.place.engine.hold(prompt)
        request = self.place.request(model, prompt, is_stream=True)
        answer = self.place.client.send(request, stream=True)
        assert answer.status_code == 200
        version = answer.headers["x-everlearn-version"]
        [begun] = [one for one in versions if self.life.name(one) == version]
        self.streams.append(OpenStream(prompt, answer, begun))

    @precondition(lambda self: self.streams)
    @rule()
    def end_a_stream(self) -> None:
        """It ends on the version that it began on, whatever has happened meanwhile."""
        stream = self.streams.pop(0)
        self.place.engine.release(stream.prompt)
        said = Said.of(stream.answer)
        stream.answer.close()
        assert said.is_whole
        self._check_weights(said, stream.version)

    # Orders

    @rule(to=targets)
    def promote(self, to: str) -> None:
        self._move(Order(PROMOTE, to))

    @rule(to=st.none() | targets)
    def roll_back(self, to: str | None) -> None:
        self._move(Order(ROLLBACK, to))

    @rule(to=targets, force=st.booleans(), behind=st.sampled_from([None, 0, 0, 1]))
    def promote_with_conditions(self, to: str, force: bool, behind: int | None) -> None:
        """By force, or only if nobody has moved the champion since."""
        revision = None if behind is None else max(len(self.life.events) - behind, 0)
        self._move(Order(PROMOTE, to, force, revision))

    @rule(to=targets)
    def retire(self, to: str) -> None:
        was_retired = self.life.statuses.copy()
        url = f"{self.path}/versions/{to}/retire"
        answer = self.place.client.post(url, json={"reason": "the test"})
        assert verdict_of(answer) == self.life.retire(to), answer.text
        if self.life.statuses != was_retired:
            name = f"{self.life.line}@v{to.removeprefix('v')}"
            self.audited.append(("version.retire", name, ""))
        self._ask(self.life.line)

    @rule(
        to=targets,
        mode=st.sampled_from(["shadow", "canary"]),
        share=st.sampled_from([50, 100, 0.01, 0, -1, 101]),
        force=st.booleans(),
    )
    def start_a_trial(self, to: str, mode: str, share: float, force: bool) -> None:
        body = {"version": to, "mode": mode, "share": share, "force": force}
        answer = self.place.client.post(f"{self.path}/trial", json=body)
        verdict = self.life.start_trial(to, mode, share, force=force)
        assert verdict_of(answer) == verdict, answer.text
        if verdict.is_accepted:
            self.audited.append(("trial.start", self.life.line, ""))
        self._ask(self.life.line)

    @rule()
    def abort_the_trial(self) -> None:
        answer = self.place.client.delete(f"{self.path}/trial")
        verdict = self.life.abort_trial()
        assert verdict_of(answer) == verdict, answer.text
        if verdict.is_accepted:
            self.audited.append(("trial.abort", self.life.line, ""))
        self._ask(self.life.line)

    @rule(both=several_orders)
    def give_orders_at_the_same_time(self, both: list[Order]) -> None:
        """Some order of events explains the outcome; who chats meanwhile hears old or new."""
        before = self.life.champion
        with ThreadPoolExecutor(len(both) + 1) as pool:
            chat = pool.submit(self.place.chat, self.life.line)
            answers = list(pool.map(self._give, both))
            said = chat.result()
        moved = len(self.life.events)
        verdicts = [verdict_of(answer) for answer in answers]
        assert self.life.settle(both, verdicts), (both, verdicts, self.life)
        self._check_views(answers, self.life.events[moved:])
        if self.life.has_engine:
            champions = {before, *(event.after for event in self.life.events[moved:])}
            champions |= {self.life.trial.number} if self.life.trial else set()
            [version] = [one for one in champions if self.life.name(one) == said.version]
            self._check_weights(said, version)
            self._ask(self.life.line)

    @rule(to=st.sampled_from(["v1", "v2", "base"]))
    def be_moved_by_a_worker(self, to: str) -> None:
        """In another process, past the API; loaded nowhere yet."""
        order = Order(PROMOTE, to)
        verdict, _ = self.life._plan(order)
        if not verdict.is_accepted:
            return
        with self.place.world.database.unit_of_work() as session:
            adapter = registry.get_adapter(session, self.life.line)
            move = promotion.plan_promotion(session, adapter, to)
            promotion.apply_move(session, adapter, move, actor="run:x", reason="")
        self.life._move(order.kind, move.to_number)
        self._view()  # whoever hears of it is answered by it
        self._ask(self.life.line)

    @precondition(lambda self: len(self.life.statuses) < 8)
    @rule()
    def register_a_candidate(self) -> None:
        seen = [key for key, is_there in self.life.documents.items() if is_there]
        self._register("candidate", seen)

    @rule(status=st.sampled_from(["servable", "rejected"]))
    def conclude_an_exam(self, status: str) -> None:
        candidates = [n for n, held in self.life.statuses.items() if held == "candidate"]
        if not candidates:
            return
        number = candidates[0]
        with self.place.world.database.unit_of_work() as session:
            version = registry.get_version(
                session, registry.get_adapter(session, self.life.line), number
            )
            assert version is not None
            registry.set_status(session, version, VersionStatus(status))
        self.life.conclude_exam(number, status)

    # Faults

    @rule()
    def the_engine_loses_its_adapters(self) -> None:
        self.place.settle_loads()
        self.place.engine.lose_adapters()

    @rule(number=st.integers(1, 2))
    def a_stranger_unloads(self, number: int) -> None:
        self.place.settle_loads()
        self.place.engine.adapters.pop(self.life.engine_name(number), None)

    @precondition(lambda self: self.life.has_engine)
    @rule()
    def the_engine_is_killed(self) -> None:
        """Streams that were on their way end with an error, and are never mistaken for whole."""
        self.place.settle_loads()
        self.place.kill_engine()
        self.life.stop_replica()
        for stream in self.streams:
            said = Said.of(stream.answer)
            stream.answer.close()
            assert not said.is_whole
            assert said.models <= {self.life.engine_name(stream.version)}
        self.streams.clear()

    @precondition(lambda self: not self.life.has_engine)
    @rule()
    def the_engine_comes_back(self) -> None:
        self.place.start_engine()
        self.life.start_replica()
        self._ask(self.life.line)

    # Documents

    @rule()
    def add_a_document(self) -> None:
        text = f"Document {next(self.numbers)} of {self.life.line}."
        answer = self.place.client.post("/api/v1/documents", json={"text": text})
        assert answer.status_code == 201, answer.text
        self.life.add_document(answer.json()["id"])

    @rule(which=st.integers(0, 9))
    def delete_a_document(self, which: int) -> None:
        ids = [*self.life.documents, "doc_unknown"]
        document_id = ids[which % len(ids)]
        answer = self.place.client.delete(f"/api/v1/documents/{document_id}")
        was_there = self.life.documents.get(document_id, False)
        verdict, versions = self.life.delete_document(document_id)
        assert verdict_of(answer) == verdict
        if verdict.is_accepted:
            assert answer.json()["versions"] == versions
            assert answer.json()["deletion"]["versions"] == versions
            if was_there:  # a second time changes nothing
                self.audited.append(("document.delete", document_id, ""))

    # What holds after every step

    @invariant()
    def the_line_is_what_the_model_says(self) -> None:
        view = self._view()
        assert view["champion"] == view["aliases"]["champion"] == self.life.name(self.life.champion)
        assert {row["number"]: row["status"] for row in view["versions"]} == self.life.statuses

    @invariant()
    def the_moves_are_a_chain(self) -> None:
        moves = [
            (event["kind"], event["from_version"], event["to_version"])
            for event in reversed(self._view()["events"])
            if event["alias"] == "champion"
        ]
        expected = [
            (event.kind, self.life.name(event.before), self.life.name(event.after))
            for event in self.life.events
        ]
        assert moves == expected[-EVENTS_SHOWN:]
        starts, ends = [move[1] for move in moves], [move[2] for move in moves]
        assert starts[1:] == ends[:-1]

    @invariant()
    def the_audit_has_one_row_for_every_accepted_order(self) -> None:
        listed = self.place.client.get("/api/v1/audit", params={"limit": 300}).json()["data"]
        names = map(self.life.name, self.life.statuses)
        mine = {self.life.line, *names, *self.life.documents}
        rows = [
            (row["action"], row["detail"]["from"], row["detail"]["to"])
            if row["action"].startswith("adapter.")
            else (row["action"], row["target"], "")
            for row in reversed(listed)
            if row["target"] in mine and row["action"] != "adapter.create"
        ]
        assert rows == self.audited

    @invariant()
    def the_models_are_listed(self) -> None:
        data = self.place.client.get("/v1/models").json()["data"]
        listed = [model["id"] for model in data if model["id"].partition("@")[0] == self.life.line]
        assert listed == self.life.models()

    @invariant()
    def the_documents_are_listed(self) -> None:
        for document_id, is_there in self.life.documents.items():
            view = self.place.client.get(f"/api/v1/documents/{document_id}").json()
            assert (view["deleted_at"] is None) is is_there

    @invariant()
    def the_engine_was_never_asked_for_another_name(self) -> None:
        asked = {body["model"] for body in list(self.place.engine.bodies)}
        mine = {name for name in asked if name.partition("@")[0] in (self.life.line, "nobody", "")}
        assert mine <= self.engine_names

    def teardown(self) -> None:
        if not self.life.has_engine:
            self.place.start_engine()
        for stream in self.streams:
            self.place.engine.release(stream.prompt)
            stream.answer.read()
            stream.answer.close()
        self._check_attribution()
        if self.life.trial is not None:
            self.place.client.delete(f"{self.path}/trial")
        with self.place.world.database.unit_of_work() as session:  # nothing of it is wanted now
            adapter = registry.get_adapter(session, self.life.line)
            for version in registry.versions_of(session, adapter):
                registry.set_status(session, version, VersionStatus.REJECTED)
            registry.aliases_of(session, adapter)
            if self.life.champion is not None:
                move = promotion.plan_rollback(session, adapter, "base")
                promotion.apply_move(session, adapter, move, actor="test", reason="")
        self.place.engine.lose_adapters()
        self.place.engine.bodies.clear()

    # Inside

    def _ask(self, model: str, *, is_stream: bool = False) -> None:
        verdict, versions = self.life.chat(model)
        said = self.place.chat(model, is_stream=is_stream)
        assert said.verdict == verdict
        if verdict.is_accepted:
            [version] = [one for one in versions if self.life.name(one) == said.version]
            self._check_weights(said, version)

    def _check_weights(self, said: Said, version: Version) -> None:
        """The header, every chunk and the words themselves come from these weights."""
        engine_name = self.life.engine_name(version)
        assert said.version == self.life.name(version)
        assert said.models == {engine_name}
        assert said.text.startswith(f"{engine_name} ")
        assert said.interaction is not None
        self.replies[said.interaction] = said.version

    def _give(self, order: Order) -> httpx2.Response:
        wanted = "version" if order.kind == PROMOTE else "to"
        conditions: dict[str, Any] = {"force": True} if order.force else {}
        if order.revision is not None:
            conditions["expected_revision"] = order.revision
        body = {wanted: order.to, **conditions}
        return self.place.client.post(f"{self.path}/{order.kind}", json=body)

    def _move(self, order: Order) -> None:
        answer = self._give(order)
        moved = len(self.life.events)
        assert verdict_of(answer) == self.life.move(order), answer.text
        self._check_views([answer], self.life.events[moved:])
        self._ask(self.life.line)

    def _check_views(self, answers: Sequence[httpx2.Response], events: Sequence[Any]) -> None:
        """Every accepted order was answered with the move that it caused."""
        views = [answer.json() for answer in answers if answer.status_code == 200]
        told = sorted((view["kind"], view["from_version"], view["to_version"]) for view in views)
        moves = [(e.kind, self.life.name(e.before), self.life.name(e.after)) for e in events]
        assert told == sorted(moves)
        self.audited += [(f"adapter.{kind}", before, after) for kind, before, after in moves]

    def _register(self, status: str, seen: Sequence[str] = ()) -> None:
        with self.place.world.database.unit_of_work() as session:
            adapter = registry.get_adapter(session, self.life.line)
            version = make_version(session, adapter, status=VersionStatus(status))
            name = registry.engine_name(self.life.line, version)
            for document_id in seen:
                session.add(RunDocument(run_id=version.run_id, document_id=document_id))
        self.engine_names.add(name)
        assert self.life.register(name, status, seen) == version.number

    def _view(self) -> dict[str, Any]:
        view: dict[str, Any] = self.place.client.get(self.path).json()
        return view

    def _check_attribution(self) -> None:
        """Every whole reply has one row, under the version that its client was told."""

        def rows() -> dict[str, tuple[str, str]]:
            with self.place.world.database.unit_of_work() as session:
                found = session.execute(
                    select(Interaction.id, Interaction.version, Interaction.outcome).where(
                        Interaction.id.in_(self.replies)
                    )
                )
                return {row.id: (row.version, row.outcome) for row in found}

        wait_for(lambda: len(rows()) == len(self.replies))
        expected = {key: (version, "complete") for key, version in self.replies.items()}
        assert rows() == expected


@contextmanager
def running_place(home: Path) -> Iterator[Place]:
    engine = PatientEngine()
    with ExitStack() as running:
        served: Served = running.enter_context(serve(engine.app()))
        port = int(served.url.rpartition(":")[2])
        headers = {"authorization": f"Bearer {KEY}"}
        with (
            running_world(home, engine, served.url) as world,
            httpx2.Client(base_url=world.gateway.url, headers=headers, timeout=30) as client,
        ):
            yield Place(engine, port, world, client, running)


@pytest.mark.usefixtures("paper_artifacts")
def test_any_life_of_a_line_is_what_the_model_says(tmp_path: Path) -> None:
    with running_place(tmp_path) as place:
        machine = type("AdapterLifeHere", (AdapterLife,), {"place": place})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=15,
                stateful_step_count=25,
                deadline=None,
                print_blob=True,
                # A shorter life fails at another moment: the one that failed is shown whole.
                phases=[Phase.explicit, Phase.reuse, Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
