"""A run's report: what it says, as JSON and as one page, of new exams and of old ones."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from server.core.settings import Settings
from server.db import AdaptationRun, EvaluationResult, VersionStatus
from server.db.session import Database
from server.services import evaluations, registry
from server.services.bootstrap import create_line
from tests.support.api import Api, running_api
from tests.support.factories import make_document, make_run, make_version

NASTY = "<script>alert('x')</script> & \"quoted\""

CONFIG = {"type": "seal", "training": {"learning_rate": 0.001}, "note": f"</pre>{NASTY}"}

OLD_DECISION = {
    "verdict": "promote",
    "reasons": [f"new documents: 0 of 8 -> 7 of 8 {NASTY}"],
    "slices": [
        {
            "name": "new documents",
            "items": 8,
            "champion": 0,
            "challenger": 7,
            "gained": 7,
            "lost": 0,
            "p_gain": 0.0078,
            "p_loss": 1.0,
            "interval": [0.625, 1.0],
            "verdict": "promote",
            "further_items": None,
        }
    ],
    "further_items": None,
}
NEW_DECISION = {
    **OLD_DECISION,
    "verdict": "inconclusive",
    "needs": [{"slice": "document doc_1", "items": 14, "documents": ["doc_1"]}],
    "checks": [
        {
            "name": "KL on the general suite",
            "champion": None,
            "challenger": 0.0312,
            "limit": 1.0,
            "verdict": "promote",
            "reason": "",
        }
    ],
    "drift": None,
}


def answer(item_id: str, before: bool, after: bool) -> dict[str, object]:
    return {
        "item_id": item_id,
        "document_id": None,
        "kind": "general",
        "prompt": f"{item_id}? {NASTY}",
        "expected": ["yes"],
        "champion_reply": f"old {NASTY}",
        "champion_is_correct": before,
        "challenger_reply": f"new {NASTY}",
        "challenger_is_correct": after,
    }


ANSWERS = [
    answer("a-kept", True, True),
    answer("b-gained", False, True),
    answer("c-lost", True, False),
    answer("d-never", False, False),
]


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    with running_api(tmp_path, settings, database) as api:
        yield api


def examined(session: Session, settings: Settings, decision: dict[str, object]) -> str:
    """A run that made a version and examined it; its id."""
    adapter = registry.get_adapter(session, settings.model.name)
    version = make_version(session, adapter, status=VersionStatus.SERVABLE)
    run = session.get(AdaptationRun, version.run_id)
    assert run is not None
    run.status, run.verdict = "succeeded", str(decision["verdict"])
    run.config = CONFIG
    run.report = {"self_edits": {"written": {"cloze by rule": 12}, "dropped": {"repeated": 3}}}
    evaluations.record(
        session,
        run_id=run.id,
        version=version,
        champion=None,
        verdict=run.verdict,
        decision=decision,
        results=ANSWERS,
    )
    return run.id


class Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("decision", [OLD_DECISION, NEW_DECISION], ids=["old", "new"])
def test_the_report_tells_the_exam_with_lost_and_gained_first(
    api: Api, decision: dict[str, object]
) -> None:
    with api.database.unit_of_work() as session:
        run_id = examined(session, api.settings, decision)

    report = api.client.get(f"/api/v1/runs/{run_id}/report").json()

    assert report["run"]["id"] == run_id
    assert report["config"] == CONFIG
    assert report["exam"] == decision
    order = [row["item_id"] for row in report["questions"]]
    assert order == ["c-lost", "b-gained", "a-kept", "d-never"]
    assert [step["name"].partition("@")[2] for step in report["lineage"]][-1] == "base"


@pytest.mark.parametrize("decision", [OLD_DECISION, NEW_DECISION], ids=["old", "new"])
def test_the_page_needs_nothing_else_and_runs_nothing(
    api: Api, decision: dict[str, object]
) -> None:
    with api.database.unit_of_work() as session:
        run_id = examined(session, api.settings, decision)

    answer = api.client.get(f"/api/v1/runs/{run_id}/report.html")
    page = Page(answer.text)

    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    names = {tag for tag, _ in page.tags}
    assert {"table", "svg", "circle"} <= names
    assert names.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not [attrs for _, attrs in page.tags if {"src", "href", "onclick"} & attrs.keys()]
    assert "url(" not in answer.text
    text = " ".join(page.words)
    assert NASTY in text  # as words
    assert "cloze by rule" in text
    assert '"learning_rate": 0.001' in text
    assert ("about 14 more, about doc_1" in text) is (decision is NEW_DECISION)
    assert re.search(r"\+88%, between \+62% and \+100%", answer.text)


def test_the_page_of_a_run_on_prompts_tells_what_was_left_out_and_how_it_went(api: Api) -> None:
    with api.database.unit_of_work() as session:
        run_id = examined(session, api.settings, NEW_DECISION | {"generalization": 0.25})
        run = session.get_one(AdaptationRun, run_id)
        run.report = {
            "taken": {"prompts": 31, "held_out": 9, "left_out": {f"an order {NASTY}": 2}},
            "quiz": {"prompts": {"asked": {"new": 8}, "not_asked": {"new": {"no majority": 1}}}},
            "ttrl": {"course": {"curve": [{"step": 0, "reward": 0.25, "why": NASTY}]}},
        }
        evaluation = evaluations.of_run(session, run_id)
        assert evaluation is not None
        row = answer("e-prompt", False, True) | {"kind": "prompt", "grader": "majority"}
        session.add(EvaluationResult(evaluation_id=evaluation.id, **row))

    page = Page(api.client.get(f"/api/v1/runs/{run_id}/report.html").text)

    text = " ".join(page.words)
    for told in (
        "Prompts and opinions",
        f"an order {NASTY}",
        "not asked: new",
        "ttrl, course",
        "0.25",
        "most of the champion's own replies",
        "Generalization Factor",
    ):
        assert told in text
    assert "script" not in {tag for tag, _ in page.tags}


def test_a_run_without_an_exam_has_a_report_too(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_document(session)
        run_id = make_run(session, registry.get_adapter(session, api.settings.model.name)).id

    report = api.client.get(f"/api/v1/runs/{run_id}/report").json()
    page = api.client.get(f"/api/v1/runs/{run_id}/report.html")

    assert (report["exam"], report["questions"], report["lineage"]) == ({}, [], [])
    assert page.status_code == 200


def test_no_run_no_report(api: Api) -> None:
    for path in ("report", "report.html"):
        answer = api.client.get(f"/api/v1/runs/run_none/{path}")

        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_a_report_is_for_those_who_may_read_the_line(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_document(session, owner="acme")
        line = create_line(session, api.settings, "acme-line", owner="acme")
        run_id = make_run(session, line).id

    def statuses(headers: dict[str, str]) -> list[int]:
        paths = (f"/api/v1/runs/{run_id}/{path}" for path in ("report", "report.html"))
        return [api.client.get(path, headers=headers).status_code for path in paths]

    assert statuses(api.key("read", owner="acme")) == [200, 200]
    assert statuses(api.key("read")) == [200, 200]
    assert statuses(api.key("read", "admin", owner="globex")) == [404, 404]
    assert statuses(api.key("ingest", owner="acme")) == [403, 403]
