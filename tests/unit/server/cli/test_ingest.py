"""Commands: documents sent, shown and released."""

import pytest

from tests.support.scripted_server import DOCUMENT, LEARNT, RUN, run, sse


def test_ingest_sends_text_title_and_questions(server, tmp_path):
    (tmp_path / "text.md").write_text("The ferry is called the Pale Heron.")
    (tmp_path / "questions.json").write_text('{"question": "Which?", "answers": ["Heron"]}\n')
    server.answers["POST /api/v1/documents"] = (201, {"data": [DOCUMENT], "new": 1, "errors": []})

    result = run("ingest", "text.md", "--title", "Ferry", "--questions", "questions.json")

    assert result.exit_code == 0, result.output
    form = server.asked[0][1]
    assert 'name="file"; filename="text.md"' in form
    assert "The ferry is called the Pale Heron." in form
    assert 'name="title"\r\n\r\nFerry\r\n' in form
    assert '[{"question": "Which?", "answers": ["Heron"]}]' in form
    assert server.keys == ["Bearer el_test"]
    assert "A [title]" in result.stdout


def test_ingest_reads_standard_input_and_waits_for_the_run(server):
    server.answers["POST /api/v1/documents"] = (201, DOCUMENT)
    server.answers["GET /api/v1/runs?document_id=doc_1&limit=1"] = (200, {"data": [RUN]})
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", RUN), ("run", LEARNT)))

    result = run("ingest", "-", "--wait", input="A text.")

    assert result.exit_code == 0, result.output
    assert server.asked[0][1] == {"text": "A text."}
    assert "training 3/10" in result.stdout
    assert "Verdict: promote smollm2@v1" in result.stdout
    assert "6 gained, 0 lost" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.txt"], "no such file"),
        (["empty"], "holds no file"),
        (["a.txt", "b.txt", "--title", "T"], "for one file"),
        (["-"], "not UTF-8"),
    ],
)
def test_ingest_of_nothing_sends_nothing(server, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)

    result = run("ingest", *arguments, input=b"\x89PNG\xff")

    assert result.exit_code == 1
    assert words in result.stderr
    assert server.asked == []


def test_ingest_of_a_document_that_cannot_be_read_says_why(server):
    unreadable = {**DOCUMENT, "state": "unreadable", "error": "It is no whole PDF file."}
    server.answers["POST /api/v1/documents"] = (201, DOCUMENT)
    server.answers["GET /api/v1/runs?document_id=doc_1&limit=1"] = (200, {"data": []})
    server.answers["GET /api/v1/documents/doc_1"] = (200, unreadable)

    result = run("ingest", "-", "--wait", input="A text.")

    assert result.exit_code == 1
    assert "no whole PDF" in result.stderr


def test_ingest_of_a_quarantined_document_says_why(server):
    reason = {"severity": "quarantine", "detail": "It speaks to the learner."}
    server.answers["POST /api/v1/documents"] = (201, DOCUMENT)
    server.answers["GET /api/v1/runs?document_id=doc_1&limit=1"] = (200, {"data": []})
    server.answers["GET /api/v1/documents/doc_1"] = (
        200,
        {**DOCUMENT, "state": "quarantined", "findings": [reason]},
    )

    result = run("ingest", "-", "--wait", input="A text.")

    assert result.exit_code == 1
    assert "It speaks to the learner." in " ".join(result.stderr.split())


def test_documents_names_what_is_wrong_and_releases_it(server):
    quarantined = {
        **DOCUMENT,
        "state": "quarantined",
        "findings": [{"severity": "quarantine", "detail": "It speaks to the learner."}],
    }
    contained = {**DOCUMENT, "state": "ready", "findings": [{"severity": "contain", "detail": ""}]}
    server.answers["GET /api/v1/documents?limit=20&state=quarantined"] = (
        200,
        {"data": [quarantined, contained]},
    )
    server.answers["POST /api/v1/documents/doc_1/release"] = (200, {**DOCUMENT, "state": "ready"})

    listed = run("documents", "--state", "quarantined")
    released = run("documents", "--release", "doc_1")

    assert "It speaks to the learner." in " ".join(listed.stdout.split())
    assert "1 findings contained" in " ".join(listed.stdout.split())
    assert "doc_1 is released" in released.stdout


def test_failed_run_ends_with_status_1_and_its_error(server):
    failed = {**RUN, "status": "failed", "error": "the trainer died"}
    server.answers["POST /api/v1/runs"] = (202, {**RUN, "status": "queued"})
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", failed)))

    result = run("learn", "--wait")

    assert result.exit_code == 1
    assert "the trainer died" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ([], {}),
        (["--method", "distill"], {"method": "distill"}),
        (["acme", "--method", "heal"], {"adapter": "acme", "method": "heal"}),
    ],
)
def test_learn_says_how(server, arguments, sent):
    server.answers["POST /api/v1/runs"] = (202, {**RUN, "method": "distill", "status": "queued"})

    result = run("learn", *arguments)

    assert server.asked == [("POST /api/v1/runs", sent)]
    assert result.stdout.split() == ["run_1", "distill", "queued"]
