"""What a run takes of prompts and opinions: fixed once, forgotten with what was deleted."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from adapters.methods.prompt_sets import usable_prompts
from adapters.methods.workbench import Assignment
from adapters.spec import METHODS
from server.core.clock import utc_now
from server.core.errors import NoPrompts
from server.db import Adapter, EvaluationResult, FeedbackKind, Interaction, Prompt, RunStatus
from server.db.session import Database
from server.services import (
    deletions,
    evaluations,
    feedback,
    interactions,
    prompt_material,
    prompts,
    registry,
    runs,
    taint,
)
from server.services.feedback import Judgement
from server.services.prompt_material import TakenPrompts, prompts_of
from server.services.prompts import PromptUpload
from server.services.runs import Claim
from tests.conftest import RecordingQueue
from tests.support.factories import captured, make_version, principal

NO_SHARE = {"prompt_exam": {"share": 0.0}, "prompts_per_user": 1.0}


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.unit_of_work() as session:
        yield session


def begin(session: Session, adapter: Adapter, method: str = "ttrl", **material: Any) -> Claim:
    """A claimed run of prompts."""
    config = METHODS[method].model_validate(NO_SHARE)
    run, _ = runs.queue_run(
        session,
        adapter,
        method=method,
        config=config.model_dump(mode="json"),
        requested_by="test",
        queue=RecordingQueue(),
        material={"kind": "prompts", **material},
    )
    owned = runs.claim(session, run.id, worker="w", lease=timedelta(seconds=30))
    assert owned is not None
    return owned


def hear(session: Session, *said: str, **fields: Any) -> str:
    record = captured(*said, **fields)
    interactions.record_all(session, [record])
    row = session.get_one(Interaction, record["id"])
    row.split = fields.get("split", "train")
    return row.id


def send(session: Session, *texts: str, owner: str | None = None, **fields: Any) -> list[str]:
    checked = prompts.checked([PromptUpload(prompt=text, **fields) for text in texts])
    stored = prompts.accept(session, checked, owner=owner, created_by="key_1")
    return [row.id for row, _ in stored]


def last_turns(taken: TakenPrompts) -> tuple[list[str], list[str]]:
    def of(found: tuple[Any, ...]) -> list[str]:
        return sorted(each.messages[-1]["content"] for each in found)

    return of(taken.train), of(taken.held_out)


def test_traffic_and_what_was_sent_are_taken_together(session: Session, adapter: Adapter) -> None:
    hear(session, "Heard?", reply="Yes.", end_user=None)
    hear(session, "Asked in the exam?", split="gate")
    (sent,) = send(session, "Sent first?", answers=("4",), tag="maths")
    session.get_one(Prompt, sent).split = "train"

    owned = begin(session, adapter)
    taken = prompts_of(session, owned)

    assert last_turns(taken) == (["Heard?", "Sent first?"], ["Asked in the exam?"])
    by_id = {each.id: each for each in taken.train}
    assert (by_id[sent].answers, by_id[sent].tag) == (("4",), "maths")
    assert len(runs.interactions_of(session, owned.run_id)) == 2
    assert runs.prompts_of(session, owned.run_id) == [sent]


def test_a_run_keeps_all_that_was_sent_for_learning(session: Session, adapter: Adapter) -> None:
    for number in range(6):
        hear(session, f"Heard {number}?", request={"user": f"u{number % 2}"})
    for prompt_id in send(session, *(f"Sent {number}?" for number in range(30))):
        session.get_one(Prompt, prompt_id).split = "train"

    taken = prompts_of(session, begin(session, adapter))
    usable = usable_prompts(Assignment(prompts=taken.train), METHODS["ttrl"]())

    assert (len(usable.prompts), dict(usable.left_out)) == (36, {})


def test_what_comes_later_is_not_of_the_run(session: Session, adapter: Adapter) -> None:
    hear(session, "First?")
    owned = begin(session, adapter)
    first = prompts_of(session, owned)
    hear(session, "Second?")

    assert prompts_of(session, owned) == first
    assert last_turns(first) == (["First?"], [])


def test_a_tag_leaves_the_others(session: Session, adapter: Adapter) -> None:
    hear(session, "Maths?", request={"metadata": {"task": "maths"}})
    hear(session, "Other?")
    send(session, "Sent?", tag="law")

    taken = prompts_of(session, begin(session, adapter, tag="maths"))

    assert last_turns(taken) == (["Maths?"], [])


def test_what_is_young_waits(session: Session, adapter: Adapter) -> None:
    old = (utc_now() - timedelta(hours=3)).isoformat()
    hear(session, "Old?", created_at=old)
    hear(session, "Young?")

    taken = prompts_of(session, begin(session, adapter, min_age_hours=2))

    assert last_turns(taken) == (["Old?"], [])


def test_another_tenants_prompts_are_not_there(session: Session, adapter: Adapter) -> None:
    hear(session, "Theirs?", owner="acme")
    send(session, "Sent by them?", owner="acme")

    with pytest.raises(NoPrompts):
        prompts_of(session, begin(session, adapter))


def test_secrets_are_taken_out(session: Session, adapter: Adapter) -> None:
    send(session, "I am ada@example.com. Who am I?", answers=("ada@example.com",))
    hear(session, "Write to bob@example.com?")

    taken = prompts_of(session, begin(session, adapter))

    assert "@example.com" not in repr(taken)
    assert "[EMAIL]" in repr(taken)


def test_pictures_and_tools_are_left_out_and_counted(session: Session, adapter: Adapter) -> None:
    hear(session, "Plain?")
    picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    hear(session, "x", request={"messages": [{"role": "user", "content": picture}]})

    taken = prompts_of(session, begin(session, adapter))

    assert last_turns(taken) == (["Plain?"], [])
    assert taken.left_out == {"not plain text": 1}


def test_opinions_are_the_latest_word_of_each_kind(session: Session, adapter: Adapter) -> None:
    judged = hear(session, "Capital?", reply="Rome.")
    hear(session, "Unjudged?")
    for value in ({"thumb": "up"}, {"thumb": "down"}):
        feedback.give(session, principal(), judged, [Judgement(FeedbackKind.THUMB, value)])
    correction = Judgement(FeedbackKind.CORRECTION, {"text": "Paris."})
    feedback.give(session, principal(), judged, [correction])

    taken = prompts_of(session, begin(session, adapter, "kto", kind="feedback"))

    (opinion,) = taken.opinions
    assert (opinion.reply, opinion.is_liked, opinion.correction) == ("Rome.", False, "Paris.")
    assert taken.train == ()


def test_a_judgement_after_the_run_took_its_material_is_not_heard(
    session: Session, adapter: Adapter
) -> None:
    judged = hear(session, "Capital?", reply="Rome.")
    feedback.give(session, principal(), judged, [Judgement(FeedbackKind.THUMB, {"thumb": "up"})])
    owned = begin(session, adapter, "kto", kind="feedback")
    prompts_of(session, owned)
    feedback.give(session, principal(), judged, [Judgement(FeedbackKind.THUMB, {"thumb": "down"})])

    (opinion,) = prompts_of(session, owned).opinions

    assert opinion.is_liked is True


def test_deleting_a_prompt_stops_the_run_that_took_it(session: Session, adapter: Adapter) -> None:
    (sent,) = send(session, "Sent?")
    session.get_one(Prompt, sent).split = "train"
    owned = begin(session, adapter)
    prompts_of(session, owned)

    row, deletion = deletions.forget_prompt(session, principal(), sent)

    assert (row.messages, row.answers) == ([], [])
    assert taint.deletion_seen_by(session, owned.run_id) == deletion
    after = prompts_of(session, owned)
    assert after.train == ()
    assert after.left_out == {prompt_material.GONE: 1}


def test_deleting_an_interaction_stops_the_run_that_took_it(
    session: Session, adapter: Adapter
) -> None:
    heard = hear(session, "Heard?")
    owned = begin(session, adapter)
    prompts_of(session, owned)

    deletion = deletions.forget_interaction(session, principal(), heard)

    assert taint.deletion_seen_by(session, owned.run_id) == deletion
    assert prompts_of(session, owned).left_out == {prompt_material.GONE: 1}


def test_a_tenants_prompts_go_with_its_data(session: Session, adapter: Adapter) -> None:
    (theirs,) = send(session, "Theirs?", owner="acme")
    (ours,) = send(session, "Ours?")

    deletion = deletions.forget_tenant(session, principal(), "acme")
    while deletions.erase_batch(session, deletion):
        pass

    assert prompts.get_prompt(session, theirs).deleted_at is not None
    assert prompts.get_prompt(session, ours).deleted_at is None


def test_a_version_knows_what_it_and_those_before_it_were_trained_on(
    session: Session, adapter: Adapter
) -> None:
    line = session.merge(adapter)
    first_heard = hear(session, "First?")
    (sent,) = send(session, "Sent?")
    owned = begin(session, line)
    prompts_of(session, owned)
    first = make_version(session, line, claim=owned)
    runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="promote")
    second_heard = hear(session, "Second?")
    again = begin(session, line, sources="traffic")
    prompts_of(session, again)
    second = make_version(session, line, claim=again, parent=first)

    assert registry.interactions_of(session, first) == {first_heard}
    assert registry.interactions_of(session, second) == {first_heard, second_heard}
    assert registry.prompts_of(session, second) == {sent}
    assert [version.id for version in prompts.versions_that_saw(session, sent)] == [first.id]


def test_a_reply_of_tool_calls_is_no_opinion(session: Session, adapter: Adapter) -> None:
    called = hear(session, "Call?", reply='{"tool_calls": []}', finish_reason="tool_calls")
    feedback.give(session, principal(), called, [Judgement(FeedbackKind.THUMB, {"thumb": "up"})])

    with pytest.raises(NoPrompts):
        prompts_of(session, begin(session, adapter, "kto", kind="feedback"))


def test_an_exam_forgets_a_prompt_of_traffic(session: Session, adapter: Adapter) -> None:
    """Its words stand in the results under the interaction's own id."""
    line = session.merge(adapter)
    heard = hear(session, "Held?", split="gate")
    version = make_version(session, line)
    evaluations.record(
        session,
        run_id=str(version.run_id),
        version=version,
        champion=None,
        verdict="reject",
        decision={},
        results=[
            {
                "item_id": "i1",
                "document_id": heard,
                "kind": "prompt",
                "prompt": "Held?",
                "expected": ["yes"],
                "champion_reply": "",
                "champion_is_correct": False,
                "challenger_reply": "",
                "challenger_is_correct": False,
            }
        ],
    )
    assert session.query(EvaluationResult).count() == 1

    deletions.forget_interaction(session, principal(), heard)

    assert session.query(EvaluationResult).count() == 0
