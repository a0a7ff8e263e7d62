"""What the store's benchmark remembers of a run that was broken off."""

from sqlalchemy import Index

from benchmarks.store import Filled, kept_folder, read_filled
from server.db import Interaction


def test_nothing_is_filled_at_first(tmp_path):
    assert read_filled(tmp_path / "filled.jsonl") == []


def test_a_torn_line_is_taken_out_and_stored_again(tmp_path):
    log = tmp_path / "filled.jsonl"
    log.write_text('{"rows": 500, "seconds": 0.1}\n{"rows": 500, "sec')

    assert read_filled(log) == [Filled(500, 0.1)]
    assert log.read_text() == '{"rows": 500, "seconds": 0.1}\n'
    assert Filled(500, 0.1).rate == 5000


def test_another_schema_has_another_folder():
    before = kept_folder("sqlite", 10)
    index = Index("ix_of_this_test", Interaction.reply)
    try:
        assert kept_folder("sqlite", 10) != before
    finally:
        Interaction.__table__.indexes.remove(index)

    assert kept_folder("sqlite", 10) == before
    assert len({before, kept_folder("sqlite", 20), kept_folder("postgresql", 10)}) == 3
