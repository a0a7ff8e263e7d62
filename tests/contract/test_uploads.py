"""Files over HTTP, from the form to the chunks: what is taken, what is refused, what is named."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from server.api.uploads import MOST_FILES
from server.cli.main import app as command_line
from server.core.settings import DocumentSettings, Settings
from server.db.session import Database
from server.services import documents
from tests.conftest import RecordingQueue
from tests.support.api import ADMIN_KEY, Api, running_api
from tests.support.files import make_docx, make_pdf
from workers.context import WorkerContext
from workers.ingest import ingest

PATH = "/api/v1/documents"
MAX_BYTES, MAX_BATCH_BYTES = 20_000, 100_000
SEA = " ".join(f"The sea at Vessin has number {number} of its moods." for number in range(40))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    limits = DocumentSettings(max_bytes=MAX_BYTES, max_batch_bytes=MAX_BATCH_BYTES, min_words=1)
    return settings.model_copy(update={"documents": limits})


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    with running_api(tmp_path, settings, database) as api:
        yield api


@pytest.fixture
def worker(settings: Settings, database: Database) -> WorkerContext:
    return WorkerContext(settings, database, cast(Any, RecordingQueue()), "test")


def form(*files: tuple[str, bytes] | tuple[str, bytes, str]) -> list[tuple[str, Any]]:
    return [("file", file) for file in files]


def send(api: Api, *files: tuple[str, bytes], **fields: str) -> dict[str, Any]:
    answer = api.client.post(PATH, files=form(*files), data=fields)
    assert answer.status_code in (200, 201), answer.text
    return cast("dict[str, Any]", answer.json())


def read(api: Api, document_id: str) -> dict[str, Any]:
    return cast("dict[str, Any]", api.client.get(f"{PATH}/{document_id}").json())


def text_of(api: Api, document_id: str) -> str:
    rows = api.client.get(f"{PATH}/{document_id}/chunks").json()["data"]
    return "".join(row["text"] for row in rows)


def test_a_form_with_every_kind_of_file_becomes_documents_that_can_be_learnt(
    api: Api, worker: WorkerContext
) -> None:
    batch = send(
        api,
        ("notes.txt", b"Notes of the keeper."),
        ("light.md", b"# The light\n\nIt is old."),
        ("page.html", b"<title>A page</title><p>It sails.</p>"),
        ("paper.pdf", make_pdf(["The paper says so."])),
        ("letter.docx", make_docx(["Dear Odile."])),
    )
    assert (batch["new"], batch["errors"]) == (5, [])

    for row in batch["data"]:
        ingest(worker, row["id"])

    rows = [read(api, row["id"]) for row in batch["data"]]
    assert [row["state"] for row in rows] == ["ready"] * 5
    assert [row["title"] for row in rows] == [
        "Notes of the keeper.", "The light", "A page", "paper", "letter",
    ]  # fmt: skip
    assert [row["filename"] for row in rows][-1] == "letter.docx"
    assert [text_of(api, row["id"]) for row in rows] == [
        "Notes of the keeper.", "# The light\n\nIt is old.", "It sails.", "The paper says so.",
        "Dear Odile.",
    ]  # fmt: skip
    with api.database.unit_of_work() as session:
        assert len(documents.live_documents(session, owner=None)) == 5


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (make_pdf(["Odile keeps it."]), "application/pdf"),
        (b"<p>Odile keeps it.</p>", "text/html; charset=utf-8"),
    ],
)
def test_a_file_may_be_the_whole_body(
    api: Api, worker: WorkerContext, content: bytes, media_type: str
) -> None:
    headers = {"content-type": media_type}
    answer = api.client.post(f"{PATH}?title=Keeper", content=content, headers=headers)
    assert answer.status_code == 201, answer.text
    ingest(worker, answer.json()["id"])

    row = read(api, answer.json()["id"])

    assert (row["state"], row["title"]) == ("ready", "Keeper")
    assert text_of(api, row["id"]) == "Odile keeps it."


def test_a_bad_file_holds_up_no_other(api: Api) -> None:
    batch = send(
        api,
        ("good.txt", b"Good."),
        ("picture.png", b"\x89PNG\xff", "image/png"),  # type: ignore[arg-type]
        ("false.pdf", b"<p>no PDF</p>"),
        ("old.docx", b"\xd0\xcf\x11\xe0"),
        ("empty.md", b" \n"),
        ("long.txt", b"a" * (MAX_BYTES + 1)),
        ("latin.txt", "Grüße".encode("latin-1")),
        ("unknown.rst", b"Also a text."),
    )

    assert [row["filename"] for row in batch["data"]] == ["good.txt", "unknown.rst"]
    assert [(one["index"], one["error"]["code"]) for one in batch["errors"]] == [
        (1, "invalid_request"),
        (2, "document_not_text"),
        (3, "document_not_text"),
        (4, "document_empty"),
        (5, "payload_too_large"),
        (6, "document_not_text"),
    ]
    assert all(one["error"]["message"] for one in batch["errors"])


def test_the_same_file_again_is_the_same_document(api: Api) -> None:
    pdf = make_pdf(["Once."])
    first = send(api, ("a.pdf", pdf), ("copy.pdf", pdf))

    again = api.client.post(PATH, files=form(("b.pdf", pdf)))

    assert first["data"][0]["id"] == first["data"][1]["id"]
    assert first["new"] == 1
    assert again.status_code == 200
    assert again.json()["new"] == 0


def test_a_text_in_a_form_is_the_same_document_as_in_json(api: Api) -> None:
    by_json = api.client.post(PATH, json={"text": "Same."}).json()

    assert send(api, ("a.md", b"Same."))["data"][0]["id"] == by_json["id"]


def test_one_file_may_have_a_title_and_questions(api: Api) -> None:
    questions = json.dumps([{"question": "Who keeps it?", "answers": ["Odile"]}])

    row = send(api, ("a.pdf", make_pdf(["x"])), title="The keeper", questions=questions)["data"][0]

    assert (row["title"], row["exam_questions"]) == ("The keeper", 1)


@pytest.mark.parametrize(
    ("files", "fields", "param", "words"),
    [
        (form(("a.txt", b"a"), ("b.txt", b"b")), {"title": "T"}, "title", "one file"),
        (form(("a.txt", b"a")), {"colour": "red"}, "colour", "known are file, title, questions"),
        (form(("a.txt", b"a")), {"questions": "[{}]"}, "questions", "required"),
        (form(("a.txt", b"a")), {"questions": "not JSON"}, None, "not valid JSON"),
        ([("picture", ("a.txt", b"a"))], {}, "picture", "send it as file"),
        (form(("a.png", b"\x89PNG", "image/png")), {}, "file", "PDF and DOCX"),
        (form(("a.png", b"\x89", "image/png"), ("b.txt", b"")), {}, "file", "None of the 2 files"),
        (form(*[(f"{n}.txt", b"%d" % n) for n in range(MOST_FILES + 1)]), {}, "file", "100 files"),
    ],
)
def test_a_bad_form_is_refused_by_name_and_nothing_is_kept(
    api: Api, files: Any, fields: dict[str, str], param: str | None, words: str
) -> None:
    answer = api.client.post(PATH, files=files, data=fields)

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert api.client.get(PATH).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"--x\r\nrubbish", "multipart/form-data; boundary=x"),
        (b"--x--\r\n", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data; boundary=x"),
        (b"--x\r\n\r\n", "multipart/form-data"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n",
         "multipart/form-data; boundary=x"),
    ],
)  # fmt: skip
def test_what_is_no_form_is_refused(api: Api, body: bytes, media_type: str) -> None:
    answer = api.client.post(PATH, content=body, headers={"content-type": media_type})

    assert answer.status_code == 400, answer.text


def test_too_long_a_form_is_refused_by_its_setting(api: Api) -> None:
    files = form(*[(f"{n}.txt", b"a" * 15_000) for n in range(8)])

    answer = api.client.post(PATH, files=files)

    assert answer.status_code == 413
    assert "EVERLEARN_DOCUMENTS__MAX_BATCH_BYTES" in answer.json()["error"]["message"]


def test_an_unreadable_file_says_why_and_may_be_sent_again(api: Api, worker: WorkerContext) -> None:
    broken = b"%PDF-1.4 but not for long"
    row = send(api, ("paper.pdf", broken))["data"][0]
    ingest(worker, row["id"])

    seen = read(api, row["id"])
    assert (seen["state"], seen["title"]) == ("unreadable", "paper.pdf")
    assert "no whole PDF" in seen["error"]
    with api.database.unit_of_work() as session:
        assert documents.live_documents(session, owner=None) == []

    again = send(api, ("paper.pdf", broken))
    assert again["new"] == 1
    assert read(api, row["id"])["error"] is None


def test_the_bytes_of_a_file_go_when_it_is_deleted_before_it_was_read(
    api: Api, worker: WorkerContext
) -> None:
    row = send(api, ("paper.pdf", make_pdf(["x"])))["data"][0]
    assert api.client.delete(f"{PATH}/{row['id']}").status_code == 200

    ingest(worker, row["id"])

    assert read(api, row["id"])["title"] == "(deleted)"
    assert text_of(api, row["id"]) == ""


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_revision_is_named_and_takes_the_place_of_what_it_revises(
    api: Api, worker: WorkerContext, order: tuple[int, int]
) -> None:
    sent = [
        api.client.post(PATH, json={"text": SEA}).json()["id"],
        api.client.post(PATH, json={"text": SEA.replace("number 7 ", "number seven ")}).json()[
            "id"
        ],
    ]
    other = api.client.post(PATH, json={"text": "Quite another text. " + SEA[:200]}).json()["id"]
    for at in order:
        ingest(worker, sent[at])
    ingest(worker, other)

    old, new = (read(api, one) for one in sent)

    assert (old["near_duplicate_of"], old["replaced_by"]) == (None, sent[1])
    assert (new["near_duplicate_of"], new["replaced_by"]) == (sent[0], None)
    assert read(api, other)["near_duplicate_of"] is None
    with api.database.unit_of_work() as session:
        assert [row.id for row in documents.live_documents(session, owner=None)] == [sent[1], other]

    assert api.client.delete(f"{PATH}/{sent[1]}").status_code == 200
    with api.database.unit_of_work() as session:
        assert [row.id for row in documents.live_documents(session, owner=None)] == [sent[0], other]


def test_a_text_that_shares_half_is_no_near_duplicate(api: Api, worker: WorkerContext) -> None:
    half = SEA[: len(SEA) // 2]
    rest = " ".join(f"The hill above Vessin has {number} trees of its own." for number in range(20))
    for text in (SEA, half + rest):
        ingest(worker, api.client.post(PATH, json={"text": text}).json()["id"])

    rows = api.client.get(PATH).json()["data"]
    assert [row["near_duplicate_of"] for row in rows] == [None, None]


def test_another_tenants_text_is_no_near_duplicate(api: Api, worker: WorkerContext) -> None:
    for owner, text in (("acme", SEA), ("globex", SEA + " The end.")):
        headers = api.key("ingest", owner=owner)
        answer = api.client.post(PATH, json={"text": text}, headers=headers)
        ingest(worker, answer.json()["id"])

    rows = api.client.get(PATH).json()["data"]
    assert {row["owner"] for row in rows} == {"acme", "globex"}
    assert [row["near_duplicate_of"] for row in rows] == [None, None]


def test_the_command_line_sends_folders_and_names_what_was_not_taken(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "manuals"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.md").write_text("# Alpha")
    (folder / "deep" / "b.pdf").write_bytes(make_pdf(["Beta."]))
    (folder / "deep" / "c.docx").write_bytes(b"no DOCX")
    (folder / "ignored.png").write_bytes(b"\x89PNG")
    monkeypatch.setenv("EVERLEARN_URL", str(api.client.base_url))
    monkeypatch.setenv("EVERLEARN_API_KEY", ADMIN_KEY)

    result = CliRunner().invoke(command_line, ["ingest", str(folder)])

    assert result.exit_code == 1
    assert "Alpha" in result.stdout
    assert "b.pdf" in result.stdout
    assert "c.docx: The file is no DOCX" in result.stderr.replace("\n", " ")
    assert len(api.client.get(PATH).json()["data"]) == 2
