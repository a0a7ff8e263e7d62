"""Made-up traffic is the same each time, and looks like traffic."""

from collections import Counter
from datetime import datetime
from itertools import islice

from benchmarks.traffic import BEGINS_AT, JUDGED_EVERY, LASTS, RARE_WORD, judgement, records
from server.services import messages
from server.services.interactions import Interaction, _rows_of

COUNT = 5_000


def test_it_repeats_with_its_seed():
    first = list(islice(records(COUNT), 300))

    assert first == list(islice(records(COUNT), 300))
    assert first != list(islice(records(COUNT, seed=1), 300))


def test_ids_and_moments_ascend_within_the_month():
    rows = list(records(COUNT))
    moments = [datetime.fromisoformat(row["created_at"]) for row in rows]

    assert len({row["id"] for row in rows}) == COUNT
    assert moments == sorted(moments)
    assert moments[0] == BEGINS_AT
    assert moments[-1] < BEGINS_AT + LASTS
    by_time = [row["id"][:16] for row in rows]
    assert by_time == sorted(by_time)


def test_a_record_has_every_column_that_is_stored():
    row, chain = _rows_of(next(records(1)))

    assert row.keys() <= set(Interaction.__table__.columns.keys())
    assert [said["role"] for said in chain] == ["system", "user"]


def test_conversations_go_on_and_are_sent_whole_again():
    turns = Counter[str]()
    said: dict[str, int] = {}
    for row in records(COUNT):
        created_at = datetime.fromisoformat(row["created_at"])
        chain = messages.chain(row["owner"], row["request"]["messages"], created_at)
        conversation = messages.conversation_of(chain)
        assert conversation is not None
        turns[conversation] += 1
        assert len(chain) > said.get(conversation, 0)
        said[conversation] = len(chain)

    assert 2 < COUNT / len(turns) < 4
    assert max(turns.values()) <= 8


def test_what_is_rare_is_there():
    rows = list(records(COUNT))
    owners = Counter(row["owner"] for row in rows)
    versions = Counter(row["version"] for row in rows)
    outcomes = Counter(row["outcome"] for row in rows)

    assert owners[None] > owners["acme"] > owners["globex"]
    assert versions["bench@v1"] + versions["bench@v2"] > 0.99 * COUNT
    assert outcomes["complete"] > 0.95 * COUNT
    assert outcomes["client_left"] > 0
    assert any(RARE_WORD in row["reply"] for row in rows)
    assert any(row["request"].get("store") is False for row in rows)


def test_one_row_in_a_hundred_is_judged():
    judged = [said for said in map(judgement, range(4 * JUDGED_EVERY)) if said]

    assert len(judged) == 4
    assert len({(said.kind, str(said.value)) for said in judged}) == 4
