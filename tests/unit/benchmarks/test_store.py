"""What the store's benchmark remembers of a run that was broken off."""

import pytest
from sqlalchemy import Index

from benchmarks.store import kept_folder, read_filled
from server.db import Interaction


@pytest.mark.parametrize(("text", "rows"), [(None, 0), ("", 0), ("12000", 12_000)])
def test_filling_goes_on_where_it_stopped(tmp_path, text, rows):
    log = tmp_path / "filled"
    if text is not None:
        log.write_text(text)

    assert read_filled(log) == rows


def test_another_schema_has_another_folder():
    before = kept_folder("sqlite", 10)
    index = Index("ix_of_this_test", Interaction.reply)
    try:
        assert kept_folder("sqlite", 10) != before
    finally:
        Interaction.__table__.indexes.remove(index)

    assert kept_folder("sqlite", 10) == before
    assert len({before, kept_folder("sqlite", 20), kept_folder("postgresql", 10)}) == 3
