"""/api/v1/feedback: a reply is judged by its id alone, once, and by nobody but its tenant."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.core.clock import new_id
from server.core.settings import Settings
from server.db.session import Database
from tests.support.api import Api, running_api, until
from tests.support.factories import captured

pytestmark = pytest.mark.usefixtures("paper_artifacts")

PATH = "/api/v1/feedback"


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    with running_api(tmp_path, settings, database) as api:
        yield api


@pytest.fixture
def stored(api: Api) -> dict[str, Any]:
    record = captured("Who keeps Kell?")
    api.store(record)
    return record


def test_the_id_that_the_client_has_is_enough(api: Api) -> None:
    reply = api.client.post(
        "/v1/chat/completions",
        json={"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]},
    ).json()

    given = api.client.post(PATH, json={"completion_id": reply["id"], "thumb": "up"})

    assert given.status_code in (201, 202)  # stored already, or on its way
    path = f"/api/v1/interactions/{reply['id'].removeprefix('chatcmpl-')}"
    until(lambda: api.client.get(path).status_code == 200)
    (found,) = api.client.get(path).json()["feedback"]
    assert (found["kind"], found["value"]) == ("thumb", {"thumb": "up"})
    assert found["interaction_id"] is not None


def test_one_call_may_say_everything(api: Api, stored: dict[str, Any]) -> None:
    answer = api.client.post(
        PATH,
        json={
            "completion_id": stored["id"],
            "choice": 1,
            "score": -0.5,
            "thumb": "down",
            "correction": "Odile keeps it.",
            "reference": "Odile Brandt.",
            "comment": "Not quite.",
            "preference": {"chosen": 0, "rejected": 1},
        },
    )

    assert answer.status_code == 201
    said = {row["kind"]: (row["choice"], row["value"]) for row in answer.json()["data"]}
    assert said == {
        "score": (1, {"score": -0.5}),
        "thumb": (1, {"thumb": "down"}),
        "correction": (1, {"text": "Odile keeps it."}),
        "reference": (1, {"text": "Odile Brandt."}),
        "comment": (1, {"text": "Not quite."}),
        "preference": (0, {"chosen": 0, "rejected": 1}),
    }


def test_the_same_again_keeps_nothing_more(api: Api, stored: dict[str, Any]) -> None:
    body = {"completion_id": stored["completion_id"], "score": 1}
    first = api.client.post(PATH, json=body)
    again = api.client.post(PATH, json=body)
    by_interaction = api.client.post(PATH, json={**body, "completion_id": stored["id"]})
    other = api.client.post(PATH, json={**body, "score": 0.5})

    assert [answer.status_code for answer in (first, again, by_interaction, other)] == [
        201,
        200,
        200,
        201,
    ]
    assert first.json() == again.json() == by_interaction.json()
    assert len(api.client.get(PATH).json()["data"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        [{"thumb": "up"}, {"thumb": "down"}, {"thumb": "up"}],
        [{"correction": "Odile."}, {"correction": "Jon."}, {"correction": "Odile."}],
        [{"thumb": "up"}, {"score": -1}, {"thumb": "up"}],
        [{"thumb": "up", "score": 1}, {"thumb": "down"}, {"thumb": "up", "score": 1}],
    ],
)
def test_who_comes_back_to_an_earlier_opinion_is_heard(
    api: Api, stored: dict[str, Any], words: list[dict[str, Any]]
) -> None:
    for said in words:
        body = {"completion_id": stored["completion_id"], **said}
        assert api.client.post(PATH, json=body).status_code == 201
        assert api.client.post(PATH, json=body).status_code == 200

    heard = [row["value"] for row in api.client.get(PATH).json()["data"]]
    assert len(heard) == sum(map(len, words))
    assert heard[: len(words[-1])] == heard[-len(words[-1]) :]


def test_choices_are_judged_each_for_itself(api: Api, stored: dict[str, Any]) -> None:
    body = {"completion_id": stored["id"], "thumb": "up"}

    for choice, thumb in ((0, "up"), (1, "down")):
        api.client.post(PATH, json={**body, "choice": choice, "thumb": thumb})

    assert api.client.post(PATH, json=body).status_code == 200


def test_a_changed_mind_on_a_reply_on_its_way_is_heard(api: Api) -> None:
    record = captured("Hi")

    for name, thumb in (("completion_id", "up"), ("id", "down"), ("completion_id", "up")):
        api.client.post(PATH, json={"completion_id": record[name], "thumb": thumb})
    api.store(record)

    heard = [row["value"]["thumb"] for row in api.client.get(PATH).json()["data"]]
    assert heard == ["up", "down", "up"]


def test_an_idempotency_key_stands_for_one_judgement(api: Api, stored: dict[str, Any]) -> None:
    def send(key: str, **said: Any) -> Any:
        body = {"completion_id": stored["id"], **said}
        return api.client.post(PATH, json=body, headers={"idempotency-key": key})

    first, again, new = send("a", thumb="up"), send("a", thumb="up"), send("b", thumb="up")

    assert [answer.status_code for answer in (first, again, new)] == [201, 200, 201]
    assert first.json() == again.json() != new.json()
    changed = send("a", thumb="down")
    assert (changed.status_code, changed.json()["error"]["code"]) == (409, "conflict")


def test_a_reply_on_its_way_is_taken_and_joined(api: Api) -> None:
    record = captured("Hi")
    body = {"completion_id": record["completion_id"], "thumb": "up"}

    waiting = api.client.post(PATH, json=body)
    assert waiting.status_code == 202
    assert waiting.json()["data"][0]["interaction_id"] is None
    api.store(record)

    again = api.client.post(PATH, json=body)
    assert again.status_code == 200
    assert again.json()["data"][0]["interaction_id"] == record["id"]


@pytest.mark.parametrize(
    "target",
    [
        "chatcmpl-123",
        "nonsense",
        "chatcmpl-int_" + "0" * 32,  # of 1970
        "chatcmpl-int_" + "f" * 32,  # far ahead
        "chatcmpl-" + new_id("int")[:-1],
    ],
)
def test_a_reply_that_cannot_be_is_unknown(api: Api, target: str) -> None:
    answer = api.client.post(PATH, json={"completion_id": target, "thumb": "up"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_another_tenants_reply_is_as_unknown_as_none(api: Api) -> None:
    record = captured("Hi", owner="b")
    api.store(record)
    mine, theirs = api.key("feedback", "read", owner="a"), api.key("feedback", owner="b")
    body = {"completion_id": record["completion_id"], "thumb": "up"}

    refused = api.client.post(PATH, json=body, headers=mine)
    unknown = api.client.post(PATH, json={**body, "completion_id": "no"}, headers=mine)
    taken = api.client.post(PATH, json=body, headers=theirs)

    assert refused.status_code == unknown.status_code == 404
    message = refused.json()["error"]["message"].replace(record["completion_id"], "no")
    assert message == unknown.json()["error"]["message"]
    assert taken.status_code == 201
    assert api.client.get(PATH, headers=mine).json()["data"] == []
    assert len(api.client.get(PATH).json()["data"]) == 1


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({}, None),
        ({"score": 1.1}, "score"),
        ({"score": "NaN"}, "score"),
        ({"thumb": "sideways"}, "thumb"),
        ({"correction": "  "}, "correction"),
        ({"comment": "a\x00b"}, "comment"),
        ({"preference": {"chosen": 1, "rejected": 1}}, "preference"),
        ({"thumb": "up", "choice": -1}, "choice"),
        ({"thumb": "up", "colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(
    api: Api, stored: dict[str, Any], said: dict[str, Any], field: str | None
) -> None:
    answer = api.client.post(PATH, json={"completion_id": stored["id"], **said})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert api.client.get(PATH).json()["data"] == []


def test_the_list_pages_and_filters(api: Api, stored: dict[str, Any]) -> None:
    other = captured("x")
    api.store(other)
    for score in (0.1, 0.2, 0.3):
        api.client.post(PATH, json={"completion_id": stored["id"], "score": score})
    api.client.post(PATH, json={"completion_id": other["id"], "thumb": "up"})

    first = api.client.get(PATH, params={"limit": 3}).json()
    second = api.client.get(PATH, params={"limit": 3, "after": first["next"]}).json()
    about = api.client.get(PATH, params={"completion_id": stored["id"]}).json()["data"]
    thumbs = api.client.get(PATH, params={"kind": "thumb"}).json()["data"]

    assert [len(first["data"]), len(second["data"]), second["next"]] == [3, 1, None]
    assert [row["value"]["score"] for row in about] == [0.3, 0.2, 0.1]
    assert [row["interaction_id"] for row in thumbs] == [other["id"]]


def test_each_route_asks_for_its_scope(api: Api, stored: dict[str, Any]) -> None:
    judge, reader = api.key("feedback"), api.key("read")
    body = {"completion_id": stored["id"], "thumb": "up"}

    assert api.client.post(PATH, json=body, headers=judge).status_code == 201
    assert api.client.post(PATH, json=body, headers=reader).status_code == 403
    assert api.client.get(PATH, headers=reader).status_code == 200
    assert api.client.get(PATH, headers=judge).status_code == 403


@pytest.mark.parametrize("body", [b"\xff\xfe{", b"{", b"[]", b'{"completion_id": "\xff"}'])
def test_without_a_key_nobody_learns_what_is_wrong_with_a_body(api: Api, body: bytes) -> None:
    headers = {"content-type": "application/json"}

    with_key = api.client.post(PATH, content=body, headers=headers)
    without = api.client.post(PATH, content=body, headers={**headers, "authorization": ""})

    assert (with_key.status_code, without.status_code) == (400, 401)
