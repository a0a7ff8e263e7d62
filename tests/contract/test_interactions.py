"""/api/v1/interactions: what was asked and answered can be found, exported, blanked and deleted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.core.settings import Settings
from server.db.session import Database
from tests.support.api import Api, running_api, until
from tests.support.factories import captured

pytestmark = pytest.mark.usefixtures("paper_artifacts")

PATH = "/api/v1/interactions"


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    with running_api(tmp_path, settings, database) as api:
        yield api


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [row["id"] for row in answer.json()["data"]]


def test_a_conversation_through_the_gateway_is_found_with_its_messages(api: Api) -> None:
    first = {"role": "user", "content": "Who keeps Kell?"}
    chat = {"model": "smollm2", "metadata": {"task": "lore"}, "user": "ada"}
    answer = api.client.post("/v1/chat/completions", json={**chat, "messages": [first]})
    reply = answer.json()["choices"][0]["message"]
    more = [first, {"role": "assistant", "content": reply["content"]}]
    more.append({"role": "user", "content": "Since when?"})
    api.client.post("/v1/chat/completions", json={**chat, "messages": more})
    until(lambda: len(ids(api.client.get(PATH))) == 2)

    later, earlier = api.client.get(PATH).json()["data"]
    detail = api.client.get(f"{PATH}/{later['id']}").json()

    assert earlier["id"] == answer.headers["x-everlearn-interaction"]
    assert earlier["conversation_id"] == later["conversation_id"]
    assert detail["messages"] == more
    assert (detail["task"], detail["reply"]) == ("lore", later["reply"])
    assert "messages" not in detail["request"]
    assert "user" not in detail["request"]


def test_store_false_keeps_no_word_of_it(api: Api) -> None:
    secret = "the painting is in the cellar"
    body = {"model": "smollm2", "messages": [{"role": "user", "content": secret}], "store": False}
    answer = api.client.post("/v1/chat/completions", json=body)
    until(lambda: len(ids(api.client.get(PATH))) == 1)

    row = api.client.get(f"{PATH}/{answer.headers['x-everlearn-interaction']}")

    assert secret not in row.text
    assert row.json()["reply"] == ""
    assert row.json()["messages"] == []
    assert row.json()["completion_tokens"] > 0
    assert not row.json()["may_learn"]


def test_pages_lead_from_the_newest_to_the_oldest(api: Api) -> None:
    records = [captured(f"question {number}") for number in range(5)]
    api.store(*records)

    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = api.client.get(PATH, params={"limit": 2, **after})
        seen += ids(page)
        if page.json()["next"] is None:
            break
        after = {"after": page.json()["next"]}

    assert seen == [record["id"] for record in reversed(records)]


def test_filters_and_search_narrow_the_list(api: Api) -> None:
    one = captured("Where is Kell?", reply="North.", created_at="2026-01-01T00:00:00+00:00")
    two = captured(
        "And Orrin?",
        reply="South.",
        adapter="other",
        version="other@v2",
        outcome="client_left",
        endpoint="responses",
        key_id="key_2",
        created_at="2026-02-01T00:00:00+00:00",
        request={"metadata": {"task": "lore"}, "input": "And Orrin?"},
    )
    api.store(one, two)
    api.client.post("/api/v1/feedback", json={"completion_id": two["id"], "thumb": "up"})

    for wanted in (
        {"adapter": "other"},
        {"version": "other@v2"},
        {"outcome": "client_left"},
        {"endpoint": "responses"},
        {"task": "lore"},
        {"key": "key_2"},
        {"since": "2026-01-15T00:00:00Z"},
        {"has_feedback": "true"},
        {"q": "south"},
        {"q": "orrin"},
    ):
        assert ids(api.client.get(PATH, params=wanted)) == [two["id"]], wanted
    for wanted in ({"until": "2026-01-15T01:00:00+02:00"}, {"has_feedback": "false"}):
        assert ids(api.client.get(PATH, params=wanted)) == [one["id"]], wanted
    conversation = api.client.get(f"{PATH}/{one['id']}").json()["conversation_id"]
    assert ids(api.client.get(PATH, params={"conversation": conversation})) == [one["id"]]


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"after": "nonsense"}, "after"),
        ({"after": "ü"}, "after"),
        ({"after": "MDAwMS0wMS0wMVQwMDowMDowMCsxNDowMCBpbnRfMQ"}, "after"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"q": "x"}, "q"),
        ({"q": "a\x00b"}, "q"),
        ({"outcome": "lovely"}, "outcome"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"since": "0001-01-01T00:00:00+14:00"}, "since"),
    ],
)
def test_a_bad_filter_is_named(api: Api, wanted: dict[str, str], field: str) -> None:
    for path in (PATH, f"{PATH}/export") if field not in ("after", "limit") else (PATH,):
        answer = api.client.get(path, params=wanted)

        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field


def test_the_export_is_redacted_training_material(api: Api) -> None:
    api.store(
        captured("I am ada@example.com.", reply="Hello."),
        captured("kept out", may_learn=False),
        captured("cut off", outcome="client_left"),
    )

    answer = api.client.get(f"{PATH}/export")

    assert answer.headers["content-type"].startswith("application/jsonl")
    assert [json.loads(line) for line in answer.text.splitlines()] == [
        {
            "messages": [
                {"role": "user", "content": "I am [EMAIL]."},
                {"role": "assistant", "content": "Hello."},
            ]
        }
    ]


def test_the_export_goes_on_over_many_pages(api: Api) -> None:
    api.store(*[captured(f"question {number}") for number in range(250)])

    lines = api.client.get(f"{PATH}/export").text.splitlines()

    assert len(set(lines)) == len(lines) == 250
    assert api.client.get(f"{PATH}/export", params={"adapter": "other"}).text == ""


def test_redacting_and_deleting_are_for_good(api: Api) -> None:
    blanked, gone = captured("hide me", reply="hide me"), captured("drop me")
    api.store(blanked, gone)

    redacted = api.client.post(f"{PATH}/{blanked['id']}/redact")
    deleted = api.client.delete(f"{PATH}/{gone['id']}")

    assert redacted.status_code == 200
    assert redacted.json()["redacted_at"] is not None
    assert "hide me" not in api.client.get(f"{PATH}/{blanked['id']}").text
    assert (deleted.json()["id"], deleted.json()["deleted"]) == (gone["id"], True)
    assert deleted.json()["deletion"]["state"] == "done"  # nothing was ever trained on it
    for call in (
        api.client.get(f"{PATH}/{gone['id']}"),
        api.client.delete(f"{PATH}/{gone['id']}"),
        api.client.post(f"{PATH}/{gone['id']}/redact"),
    ):
        assert (call.status_code, call.json()["error"]["code"]) == (404, "not_found")


def test_another_tenants_rows_are_as_if_they_were_not_there(api: Api) -> None:
    mine, other = captured("mine", owner="a"), captured("other", owner="b")
    api.store(mine, other)
    tenant = api.key("read", "admin", owner="a")

    assert ids(api.client.get(PATH, headers=tenant)) == [mine["id"]]
    assert "other" not in api.client.get(f"{PATH}/export", headers=tenant).text
    path = f"{PATH}/{other['id']}"
    unknown = api.client.get(f"{PATH}/int_unknown", headers=tenant)
    for call in (
        api.client.get(path, headers=tenant),
        api.client.post(f"{path}/redact", headers=tenant),
        api.client.delete(path, headers=tenant),
    ):
        assert call.status_code == 404
        assert (
            call.json()["error"]["message"].replace(other["id"], "int_unknown")
            == (unknown.json()["error"]["message"])
        )
    assert api.client.get(path).status_code == 200


def test_each_route_asks_for_its_scope(api: Api) -> None:
    record = captured("x")
    api.store(record)
    reader, talker = api.key("read"), api.key("chat", "ingest", "feedback")
    reads = ("", "/export", f"/{record['id']}")

    assert {api.client.get(PATH + end, headers=reader).status_code for end in reads} == {200}
    assert {api.client.get(PATH + end, headers=talker).status_code for end in reads} == {403}
    for headers in (reader, talker):
        path = f"{PATH}/{record['id']}"
        assert api.client.delete(path, headers=headers).status_code == 403
        assert api.client.post(f"{path}/redact", headers=headers).status_code == 403
