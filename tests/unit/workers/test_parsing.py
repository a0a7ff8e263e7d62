"""A file that is made to harm its reader costs a child process, and the worker a sentence."""

import os
import resource
import time
from pathlib import Path

import pytest

from adapters.corpus.parsing import Unreadable
from adapters.types import MediaType
from server.core.settings import DocumentSettings
from tests.support.files import (
    make_docx,
    make_entity_bomb,
    make_pdf,
    make_prying_docx,
    make_zip_bomb,
)
from workers import parsing
from workers.parsing import read_file


def read(content: bytes, kind: MediaType, **settings: object) -> str:
    limits = DocumentSettings(**settings)
    return read_file(content, kind, charset=None, settings=limits).text


def test_files_of_each_kind_come_back_as_text() -> None:
    assert read(make_pdf(["Old."]), MediaType.PDF) == "Old."
    assert read(make_docx(["Grüße."]), MediaType.DOCX) == "Grüße."
    assert read(b"<p>Old.</p>", MediaType.HTML) == "Old."


def test_a_zip_bomb_meets_the_memory_limit() -> None:
    bomb = make_zip_bomb(unpacked_mib=200)
    assert len(bomb) < 1024 * 1024

    with pytest.raises(Unreadable, match=r"256 MiB.*EVERLEARN_DOCUMENTS__PARSE_MEMORY_MIB"):
        read(bomb, MediaType.DOCX, parse_memory_mib=256)

    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY  # ours is untouched


def test_an_entity_bomb_ends_at_once() -> None:
    began = time.monotonic()

    with pytest.raises(Unreadable):
        read(make_entity_bomb(), MediaType.DOCX, parse_memory_mib=256, parse_timeout_s=20)

    assert time.monotonic() - began < 15


def test_a_file_that_asks_for_a_file_of_the_machine_does_not_get_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the planted secret")

    try:
        text = read(make_prying_docx(str(secret)), MediaType.DOCX)
    except Unreadable as error:
        text = str(error)

    assert "planted" not in text


def test_a_file_that_takes_for_ever_is_given_up() -> None:
    slow = b"<p>" + b"<!" * 3_000_000  # the reader looks for the end of each declaration
    began = time.monotonic()

    with pytest.raises(Unreadable, match=r"longer than 1 s.*EVERLEARN_DOCUMENTS__PARSE_TIMEOUT_S"):
        read(slow, MediaType.HTML, parse_timeout_s=1)

    assert time.monotonic() - began < 10


def test_a_reader_that_dies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "JOB_MODULE", "tests.support.no_such_module")

    with pytest.raises(Unreadable, match="ended the reader"):
        read(b"<p>x</p>", MediaType.HTML)


def test_the_reader_knows_no_secret_of_the_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spy = tmp_path / "spy.py"
    spy.write_text(
        "import json, os; print(json.dumps({'text': str(dict(os.environ)), 'title': None}))"
    )
    monkeypatch.setenv("EVERLEARN_DATABASE_URL", "postgresql://user:planted@db")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd()]))
    monkeypatch.setattr(parsing, "JOB_MODULE", "spy")

    seen = read(b"<p>x</p>", MediaType.HTML)

    assert "PATH" in seen
    assert "planted" not in seen
