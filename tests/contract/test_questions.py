"""Questions on a document over HTTP: sent later, in three forms, listed, removed; and the judge."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import update

from adapters.types import ItemKind, build_item
from server.core.clock import utc_now
from server.core.errors import RowNotFound
from server.core.settings import Settings
from server.db import Document
from server.db.session import Database
from server.services import calibrations, documents, questions
from server.services.documents import SentQuestion
from tests.support.api import Api, running_api
from tests.support.factories import make_document, principal

WHO = {"question": "Who keeps it?", "answers": ["Odile", "Odile Brandt"]}
COUNT = {"question": "How many steps has it?", "answers": ["1,212"], "grader": "numeric"}
GRID = {"question": "What is the grid?", "answers": ["1 2\n3 4"], "grader": "exact"}
WHY = {"question": "Why is it closed?", "answers": ["It was flooded"], "grader": "judge"}


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    with running_api(tmp_path, settings, database) as api:
        yield api


def document(api: Api, owner: str | None = None) -> str:
    with api.database.unit_of_work() as session:
        return make_document(session, owner=owner).id


def path(document_id: str) -> str:
    return f"/api/v1/documents/{document_id}/questions"


def send(api: Api, document_id: str, body: Any, **request: Any) -> httpx2.Response:
    return api.client.post(path(document_id), json=body, **request)


def listed(api: Api, document_id: str, **query: Any) -> list[dict[str, Any]]:
    answer = api.client.get(path(document_id), params=query)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


def error(answer: httpx2.Response) -> tuple[int, str, str | None]:
    found = answer.json()["error"]
    return answer.status_code, found["code"], found["param"]


def test_one_question_a_list_and_lines_are_taken_alike(api: Api) -> None:
    document_id = document(api)
    lines = f"{json.dumps(GRID)}\n\n{json.dumps(WHY)}\n"

    one = send(api, document_id, WHO)
    several = send(api, document_id, [COUNT])
    by_line = api.client.post(
        path(document_id), content=lines, headers={"content-type": "application/jsonl"}
    )

    assert [answer.status_code for answer in (one, several, by_line)] == [201, 201, 201]
    assert [answer.json()["new"] for answer in (one, several, by_line)] == [1, 1, 2]
    rows = {row["question"]: row for row in listed(api, document_id)}
    for sent in (WHO, COUNT, GRID, WHY):
        row = rows[str(sent["question"])]
        assert (row["answers"], row["grader"]) == (sent["answers"], sent.get("grader", "match"))
        assert (row["kind"], row["split"], row["interaction_id"]) == ("user", "exam", None)


def test_the_same_again_changes_nothing(api: Api) -> None:
    document_id = document(api)
    first = send(api, document_id, [WHO, WHO])

    again = send(api, document_id, [WHO | {"answers": ["Somebody else"]}, COUNT])
    same = send(api, document_id, WHO)

    assert (first.json()["new"], len(first.json()["data"])) == (1, 1)
    assert (again.status_code, again.json()["new"]) == (201, 1)
    assert again.json()["data"][0] == first.json()["data"][0]
    assert (same.status_code, same.json()["new"]) == (200, 0)


def test_with_the_document_a_question_may_name_its_grader(api: Api) -> None:
    sent = api.client.post("/api/v1/documents", json={"text": "Some text.", "questions": [COUNT]})

    [row] = listed(api, sent.json()["id"])

    assert (row["grader"], row["answers"]) == ("numeric", ["1,212"])
    with api.database.unit_of_work() as session:
        [item] = documents.exam_items(session, [sent.json()["id"]], split="exam")
    assert item.grader == "numeric"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "question"),
        ([], "questions"),
        ([WHO] * 501, "questions"),
        ("Who?", "question"),
        ([WHO, {"question": "Who?"}], "answers"),
        (WHO | {"answers": []}, "answers"),
        (WHO | {"answers": [" "]}, "answers.0"),
        (WHO | {"question": "  "}, "question"),
        (WHO | {"question": "x" * 2001}, "question"),
        (WHO | {"grader": "oracle"}, "grader"),
        (COUNT | {"answers": ["3 May 1902"]}, "answers"),
        (COUNT | {"answers": ["1,5"]}, "answers"),
        (COUNT | {"answers": ["1.000,5"]}, "answers"),
        (COUNT | {"answers": ["10-12"]}, "answers"),
        (COUNT | {"answers": ["1, 2"]}, "answers"),
        (COUNT | {"answers": ["twelve"]}, "answers"),
        (WHO | {"answers": ["?", "\u200b"]}, "answers"),
        (WHY | {"answers": ["--"]}, "answers"),
        (COUNT | {"answers": ["12 or 13"]}, "answers"),
    ],
)
def test_what_is_no_question_is_refused_by_name_and_nothing_is_kept(
    api: Api, body: Any, param: str
) -> None:
    document_id = document(api)

    answer = send(api, document_id, body)

    assert error(answer) == (400, "invalid_request", param)
    assert listed(api, document_id) == []


def test_an_unknown_field_and_an_unknown_type_are_named(api: Api) -> None:
    document_id = document(api)

    field = send(api, document_id, WHO | {"weight": 2})
    form = api.client.post(path(document_id), content="x", headers={"content-type": "text/csv"})
    broken = api.client.post(
        path(document_id), content="{}\n{", headers={"content-type": "application/x-ndjson"}
    )

    assert error(field) == (400, "unknown_field", "weight")
    assert error(form) == (400, "invalid_request", "content-type")
    assert broken.status_code == 400


def test_numbers_are_taken_in_every_common_form(api: Api) -> None:
    answers = ["4,312", "4 312", "-5", "0.5", ".5", "50 %", "1e3"]

    answer = send(api, document(api), COUNT | {"answers": answers})

    assert answer.status_code == 201, answer.text
    assert answer.json()["data"][0]["answers"] == answers


def test_one_question_is_removed_and_the_act_is_on_record(api: Api) -> None:
    document_id, other = document(api), "doc_other"
    rows = send(api, document_id, [WHO, COUNT]).json()["data"]

    wrong = api.client.delete(f"{path(other)}/{rows[0]['id']}")
    gone = api.client.delete(f"{path(document_id)}/{rows[0]['id']}")
    again = api.client.delete(f"{path(document_id)}/{rows[0]['id']}")

    assert error(wrong)[:2] == (404, "not_found")
    assert gone.json() == {"id": rows[0]["id"], "deleted": True}
    assert error(again)[:2] == (404, "not_found")
    assert [row["question"] for row in listed(api, document_id)] == [COUNT["question"]]
    [event] = api.client.get("/api/v1/audit").json()["data"][:1]
    assert (event["action"], event["target"]) == ("question.delete", rows[0]["id"])


def test_a_question_of_another_document_is_not_removed_through_this_one(api: Api) -> None:
    mine, theirs = document(api), document(api, owner="acme")
    [row] = send(api, mine, WHO).json()["data"]

    answer = api.client.delete(f"{path(theirs)}/{row['id']}")

    assert error(answer)[:2] == (404, "not_found")
    assert len(listed(api, mine)) == 1


def test_pages_and_kinds(api: Api) -> None:
    document_id = document(api)
    send(api, document_id, [WHO | {"question": f"Who is number {n}?"} for n in range(5)])

    first = api.client.get(path(document_id), params={"limit": 3}).json()
    rest = api.client.get(path(document_id), params={"limit": 3, "after": first["next"]}).json()

    assert len({row["id"] for row in first["data"] + rest["data"]}) == 5
    assert rest["next"] is None
    assert len(listed(api, document_id, kind="user")) == 5
    assert listed(api, document_id, kind="traffic") == []


def test_another_tenants_questions_are_not_there(api: Api) -> None:
    theirs = document(api, owner="acme")
    send(api, theirs, WHO)
    mine = api.key("ingest", "read", "admin", owner="globex")
    own = api.key("ingest", owner="acme")

    answers = [
        api.client.get(path(theirs), headers=mine),
        api.client.post(path(theirs), json=COUNT, headers=mine),
        api.client.delete(f"{path(theirs)}/{listed(api, theirs)[0]['id']}", headers=mine),
    ]

    assert [error(answer)[:2] for answer in answers] == [(404, "not_found")] * 3
    assert api.client.post(path(theirs), json=COUNT, headers=own).status_code == 201


def test_a_forgotten_document_takes_no_questions_and_shows_none(api: Api) -> None:
    document_id = document(api)
    send(api, document_id, WHO)
    api.client.delete(f"/api/v1/documents/{document_id}")

    assert error(send(api, document_id, COUNT))[:2] == (404, "not_found")
    assert listed(api, document_id) == []


def test_the_judge_is_shown_with_what_it_got_wrong(api: Api) -> None:
    assert api.client.get("/api/v1/exams/judge").json() == {"data": []}
    with api.database.unit_of_work() as session:
        for judge, false_right in (("old", 1), ("new", 9)):
            calibrations.record(
                session,
                judge=judge,
                cases=55,
                agreed=40,
                false_right=false_right,
                false_wrong=15 - false_right,
                is_trusted=judge == "old",
            )

    rows = api.client.get("/api/v1/exams/judge").json()["data"]

    assert [(row["judge"], row["false_right"], row["is_trusted"]) for row in rows] == [
        ("new", 9, False),
        ("old", 1, True),
    ]


def test_signs_alone_can_be_an_exact_answer(api: Api) -> None:
    answer = send(api, document(api), GRID | {"answers": [">="]})

    assert answer.status_code == 201, answer.text


def test_what_users_have_asked_is_not_shown_to_a_key_that_may_only_send(api: Api) -> None:
    document_id = document(api)
    send(api, document_id, WHO)
    heard = build_item(
        ItemKind.TRAFFIC, document_id, prompt="Who holds the key?", answers=("Odile",)
    )
    with api.database.unit_of_work() as session:
        documents.add_exam_questions(
            session, document_id, exam=[heard], train=[], interaction_id="int_1"
        )

    def kinds(*scopes: str) -> list[str]:
        answer = api.client.get(path(document_id), headers=api.key(*scopes))
        return sorted(row["kind"] for row in answer.json()["data"])

    assert kinds("ingest") == ["user"]
    assert kinds("read") == kinds("read", "ingest") == kinds("admin") == ["traffic", "user"]


def test_a_document_has_so_many_questions_and_no_more_however_they_come(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MOST_USER_QUESTIONS", 1)
    with_it = {"text": "Some text.", "questions": [WHO, COUNT]}

    refused = api.client.post("/api/v1/documents", json=with_it)
    taken = api.client.post("/api/v1/documents", json=with_it | {"questions": [WHO]})
    again = api.client.post("/api/v1/documents", json=with_it | {"questions": [WHO]})
    more = send(api, taken.json()["id"], COUNT)

    assert error(refused) == error(more) == (400, "invalid_request", "questions")
    assert (taken.status_code, again.status_code) == (201, 200)
    assert len(listed(api, taken.json()["id"])) == 1


def test_a_document_that_is_deleted_at_the_same_moment_takes_no_question(api: Api) -> None:
    document_id = document(api)
    with api.database.unit_of_work() as session:
        documents.get_document(session, document_id)  # as it was before the other's commit
        session.execute(
            update(Document)
            .where(Document.id == document_id)
            .values(deleted_at=utc_now())
            .execution_options(synchronize_session=False)
        )
        with pytest.raises(RowNotFound, match="deleted"):
            questions.add(session, principal(), document_id, [SentQuestion("Who?", ("Odile",))])
