"""The write-ahead segments: nothing captured is lost, nothing is stored twice."""

import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from server.core.clock import utc_now
from server.core.settings import CaptureSettings
from server.db import Interaction
from server.db.session import Database
from server.gateway import shipping
from server.gateway.capture import Capture
from server.gateway.segments import Segment, read_records


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": name,
        "created_at": utc_now().isoformat(),
        "completion_id": None,
        "key_id": "key_1",
        "requested_model": "smollm2",
        "version": "smollm2@v1",
        "adapter": "smollm2",
        "engine_name": "smollm2@v1.00000000",
        "is_stream": False,
        "request": {"messages": [{"role": "user", "content": "h\u2028i\n"}]},
        "reply": "ho",
        "finish_reason": "stop",
        "outcome": "complete",
        "status": 200,
        "error": None,
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "first_byte_ms": 1.5,
        "duration_ms": 2.5,
        **fields,
    }


@pytest.fixture
async def database(database: Database) -> AsyncIterator[Database]:
    yield database
    await database.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "segments"


@pytest.fixture
def capture(folder: Path, database: Database) -> Capture:
    return Capture(CaptureSettings(ship_s=0.01), folder, database)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def stored(database: Database) -> list[str]:
    with database.unit_of_work() as session:
        return list(session.scalars(select(Interaction.id).order_by(Interaction.id)))


async def test_records_are_on_disk_at_once_and_in_the_database_after_shipping(
    capture: Capture, folder: Path, database: Database
) -> None:
    capture.record(record("int_1"))
    capture.record(record("int_2"))

    (segment,) = files(folder)
    assert [line["id"] for line in read_records(segment)] == ["int_1", "int_2"]
    assert await capture.ship() == 2
    assert stored(database) == ["int_1", "int_2"]
    assert files(folder) == []
    assert await capture.ship() == 0


async def test_closing_ships_what_is_left(capture: Capture, database: Database) -> None:
    await capture.start()
    capture.record(record("int_1"))
    await capture.close()

    assert stored(database) == ["int_1"]


async def test_a_killed_process_leaves_a_segment_that_the_next_one_ships(
    capture: Capture, folder: Path, database: Database
) -> None:
    dead = Segment.create(folder)
    dead.append(record("int_1"))
    os.write(dead._descriptor, b'{"id": "int_2", "repl')  # killed in the middle of a line
    dead.close()  # what the kernel does for a killed process: the lock goes

    assert await capture.ship() == 1
    assert stored(database) == ["int_1"]


async def test_a_segment_of_a_living_process_is_left_alone(
    capture: Capture, folder: Path, database: Database
) -> None:
    other = Segment.create(folder)
    other.append(record("int_1"))

    assert await capture.ship() == 0
    assert other.path.exists()
    other.close()
    assert await capture.ship() == 1


async def test_a_segment_shipped_twice_is_stored_once(
    capture: Capture, folder: Path, database: Database
) -> None:
    for _ in range(2):  # as if the first shipper died between commit and clean-up
        segment = Segment.create(folder)
        segment.append(record("int_1"))
        segment.close()
        await capture.ship()

    assert stored(database) == ["int_1"]


async def test_an_absent_database_keeps_the_segments(
    capture: Capture, folder: Path, database: Database
) -> None:
    with database.unit_of_work() as session:
        session.execute(text("ALTER TABLE interactions RENAME TO elsewhere"))
    await capture.start()
    capture.record(record("int_1"))
    await capture.close()
    assert len(files(folder)) == 1

    with database.unit_of_work() as session:
        session.execute(text("ALTER TABLE elsewhere RENAME TO interactions"))
    assert await capture.ship() == 1
    assert stored(database) == ["int_1"]


async def test_a_record_that_the_database_refuses_does_not_hold_up_the_others(
    capture: Capture, database: Database
) -> None:
    capture.record(record("int_1"))
    capture.record(record("int_2", status=None))
    capture.record(record("int_3"))

    await capture.ship()

    assert stored(database) == ["int_1", "int_3"]


async def test_many_records_go_in_batches(
    capture: Capture, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "BATCH", 2)
    for number in range(5):
        capture.record(record(f"int_{number}"))

    assert await capture.ship() == 5
    assert len(stored(database)) == 5


def test_a_full_disk_drops_the_record_and_nothing_else(capture: Capture) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    capture._segment = Segment(Path("/dev/full"), full)

    capture.record(record("int_1"))

    assert capture.dropped == 1
    os.close(full)


def test_what_json_cannot_hold_is_dropped_and_counted(capture: Capture) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"deeper": deep}

    capture.record(record("int_1", request=deep))

    assert capture.dropped == 1
    while deep:  # freed step by step: the interpreter's own way down recurses
        deep = deep["deeper"]


async def test_switched_off_nothing_is_written(folder: Path, database: Database) -> None:
    capture = Capture(CaptureSettings(is_enabled=False), folder, database)
    await capture.start()
    capture.record(record("int_1"))
    await capture.close()

    assert files(folder) == []


def test_a_segment_is_locked_before_a_shipper_can_see_it(folder: Path) -> None:
    segment = Segment.create(folder)

    with segment.path.open() as seen, pytest.raises(BlockingIOError):
        fcntl.flock(seen, fcntl.LOCK_EX | fcntl.LOCK_NB)
    segment.close()
