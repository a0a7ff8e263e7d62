"""Commands: questions about documents."""

import json

import pytest

from tests.support.scripted_server import run

QUESTION = {
    "id": "que_1",
    "kind": "user",
    "split": "exam",
    "grader": "numeric",
    "question": "How many [steps]?",
    "answers": ["212"],
}


def test_questions_are_sent_from_lists_and_lines_alike(server, tmp_path):
    rows = [{"question": f"Who is {n}?", "answers": ["x"]} for n in range(501)]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, rows[:2])) + "\n\n")
    server.answers["POST /api/v1/documents/doc_1/questions"] = (201, {"data": [], "new": 1})

    listed = run("questions", "add", "doc_1", "list.json")
    lines = run("questions", "add", "doc_1", "lines.jsonl")

    assert "2 added, 499 were there already." in listed.stdout
    assert "1 added, 1 were there already." in lines.stdout
    assert [body for _, body in server.asked] == [rows[:500], rows[500:], rows[:2]]


def test_one_question_needs_no_file(server):
    server.answers["POST /api/v1/documents/doc_1/questions"] = (201, {"data": [], "new": 1})

    result = run(
        *("questions", "add", "doc_1", "--question", "How many?", "--answer", "12"),
        *("--answer", "13", "--grader", "numeric"),
    )

    assert result.stdout == "1 added.\n"
    [(_, body)] = server.asked
    assert body == [{"question": "How many?", "answers": ["12", "13"], "grader": "numeric"}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Give either"),
        (["a.json", "--question", "Who?"], "Give either"),
        (["--question", "Who?"], "--answer"),
        (["nowhere.json"], "Cannot read"),
        (["broken.json"], "line 2"),
        (["none.json"], "no question"),
    ],
)
def test_what_is_no_question_is_not_sent(server, tmp_path, arguments, words):
    (tmp_path / "broken.json").write_text('{"question": "a", "answers": ["b"]}\n{')
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "a.json").write_text("[]")

    result = run("questions", "add", "doc_1", *arguments)

    assert result.exit_code == 1
    assert words in result.stderr
    assert server.asked == []


def test_questions_are_listed_and_removed(server):
    path = "/api/v1/documents/doc_1/questions"
    server.answers[f"GET {path}?limit=100"] = (200, {"data": [QUESTION], "next": None})
    server.answers[f"GET {path}?limit=1"] = (200, {"data": [], "next": None})
    server.answers[f"DELETE {path}/que_1"] = (200, {"id": "que_1", "deleted": True})

    shown = run("questions", "list", "doc_1").stdout
    none = run("questions", "list", "doc_1", "--limit", "1").stdout
    removed = run("questions", "remove", "doc_1", "que_1").stdout

    assert all(word in shown for word in ("que_1", "user", "numeric", "How many [steps]?", "212"))
    assert "No question yet" in none
    assert "asked no more" in removed
