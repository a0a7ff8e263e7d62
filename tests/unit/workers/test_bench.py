"""A run's workbench: what one attempt has done, the next one finds."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.lesson import Stage, Weights
from adapters.sampling import SamplingError
from adapters.spec import AnswerVerifier, BudgetSpec, HttpVerifier, LoraSpec, TrainingSpec
from adapters.types import Attempt, EditKind, Prompt, SamplingParams, SelfEdit, Verdict
from server.core.errors import LeaseLost
from server.core.settings import EngineSettings, Settings
from server.db.session import Database
from server.services.rebuilds import LESSON
from server.services.runs import Claim
from tests.conftest import RecordingQueue
from tests.support.fake_engine import FakeEngine, Served, serve
from tests.support.trainings import scripted
from tests.support.workbench import ScriptedSampler
from workers import bench
from workers.bench import Origin, RunBench, claim_of_try, drop_trained, may_be_held
from workers.context import WorkerContext
from workers.heart import Heart
from workers.lesson import CHAMPION, read_lesson
from workers.spending import Account, CountedSampler, Spent


class Quiet:
    """A heart that beats for nobody."""

    def begin(self, stage: str) -> None: ...

    def progress(self, done: int, total: int) -> None: ...

    def confirm(self) -> None: ...


class Lost(Quiet):
    """The heart of a worker that was stopped for longer than its lease, and has not beaten since."""

    def confirm(self) -> None:
        raise LeaseLost("run_1", 1)


class Trainer:
    """Leaves a checkpoint, then does as told; notes what it was given."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.found: list[list[str]] = []
        self.outcome: BaseException | None = None

    def __call__(self, job: dict[str, Any], *, folder: Path, heart: object) -> dict[str, Any]:
        self.jobs.append(job)
        if job["checkpoints"]:
            checkpoints = Path(job["checkpoints"])
            checkpoints.mkdir(exist_ok=True)
            self.found.append(sorted(path.name for path in checkpoints.iterdir()))
            (checkpoints / f"step-{len(self.jobs)}").touch()
        if self.outcome is not None:
            raise self.outcome
        for output in job["outputs"]:
            Path(output).mkdir(parents=True)
            Weights(Path(output)).moments.touch()
        return {"seconds": 1.5, "tokens": 10, "steps": 2, "environment": {}}


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(bench, "Trainer", scripted(made))
    return made


@pytest.fixture
def context(settings: Settings, database: Database, queue: RecordingQueue) -> WorkerContext:
    return WorkerContext(settings, database, cast(Any, queue), "test")


def attempt(
    context: WorkerContext,
    folder: Path,
    champion: Weights | None = None,
    *,
    number: int = 1,
    heart: Quiet | None = None,
) -> RunBench:
    origin = Origin("m", "base", "m@base", "m@base", "m@base", champion, champion and "ver_1")
    owned = Claim("run_1", number)
    made = RunBench(context, cast(Heart, heart or Quiet()), origin, folder=folder, owned=owned)
    made.scratch.mkdir(parents=True, exist_ok=True)
    return made


def stage(text: str) -> Stage:
    edit = SelfEdit(EditKind.PASSAGE, "d", None, text, "rule")
    return Stage(LoraSpec(), TrainingSpec(), seed=0, edits=(edit,))


def test_an_attempt_after_a_crash_goes_on_from_the_checkpoints(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    trainer.outcome = KeyboardInterrupt()  # nothing that the worker itself would handle
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            attempt(context, tmp_path).train(stage("a"))

    trainer.outcome = None
    last = attempt(context, tmp_path)
    last.train(stage("a"))

    assert trainer.found == [[], ["step-1"], ["step-1", "step-2"]]
    assert not last.checkpoints.exists()


def test_what_was_trained_is_not_trained_again(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    first = attempt(context, tmp_path)
    begun = first.train(stage("a"))
    first.train(stage("b"), start=begun)

    second = attempt(context, tmp_path)
    again = second.train(stage("a"))
    on = second.train(stage("b"), start=again)

    assert len(trainer.jobs) == 2
    assert trainer.jobs[1]["start"] == str(begun.folder)
    assert [closing["tokens"] for closing in second.closings] == [10, 10]
    lesson = read_lesson(second.settle(on), "m@v1")
    assert [each.stage for each in lesson.trainings] == [stage("a"), stage("b")]
    assert [each.start for each in lesson.trainings] == [None, 0]


def test_another_lesson_is_trained_in_the_place_of_the_first(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    attempt(context, tmp_path).train(stage("a"))

    attempt(context, tmp_path).train(stage("other"))

    assert len(trainer.jobs) == 2


def test_the_lesson_ends_with_the_weights_that_were_chosen(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    made = attempt(context, tmp_path, champion=Weights(tmp_path / "champion"))
    chosen = made.train(stage("a"), start=Weights(tmp_path / "champion"))
    made.train(stage("b"), start=chosen)

    lesson = read_lesson(made.settle(chosen), "m@v1")

    assert [(each.stage, each.start) for each in lesson.trainings] == [(stage("a"), CHAMPION)]
    assert lesson.started_from == "ver_1"
    assert len(made.closings) == 1


def test_asked_once_is_asked_once_in_a_run(context: WorkerContext, tmp_path: Path) -> None:
    asked: list[int] = []

    def make() -> int:
        asked.append(1)
        return len(asked)

    first = attempt(context, tmp_path).once("edits", make)
    second = attempt(context, tmp_path).once("edits", make)

    assert (first, second, asked) == (1, 1, [1])


def test_trials_that_diverge_leave_a_gap(
    context: WorkerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(job: dict[str, Any], *, folder: Path, heart: object) -> dict[str, Any]:
        assert job["are_trials"]
        for output in job["outputs"][1:]:
            Path(output).mkdir()
        return {}

    monkeypatch.setattr(bench, "Trainer", scripted(half))

    lost, kept = attempt(context, tmp_path).try_out([stage("a"), stage("b")])
    alone = attempt(context, tmp_path).try_out([stage("a")])

    assert lost is None
    assert kept is not None
    assert alone == [None]
    assert not (tmp_path / LESSON).exists()  # trials are no part of the lesson


def test_a_run_that_ends_leaves_no_weights(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    made = attempt(context, tmp_path / "run")
    made.train(stage("a"))
    made.settle(Weights(tmp_path / "run" / "trained-0"))
    trainer.outcome = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        made.train(stage("b"))

    drop_trained(tmp_path / "run")

    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["attempt-1", LESSON]


def test_only_a_lesson_that_begins_at_the_champion_names_it(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    """A second stage begins at the first one's weights, not at the champion's."""
    champion = Weights(tmp_path / "v1")
    fresh = attempt(context, tmp_path / "fresh", champion)
    fresh.settle(fresh.train(stage("b"), start=fresh.train(stage("a"))))
    on = attempt(context, tmp_path / "on", champion)
    on.settle(on.train(stage("b"), start=on.train(stage("a"), start=champion)))

    assert read_lesson(tmp_path / "fresh" / LESSON, "m").started_from is None
    assert read_lesson(tmp_path / "on" / LESSON, "m").started_from == "ver_1"


def test_what_went_on_from_another_champion_is_trained_again(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    champion = Weights(tmp_path / "v1")
    attempt(context, tmp_path, champion).train(stage("a"), start=champion)
    second = attempt(context, tmp_path, champion)
    second.origin = replace(second.origin, champion_id="ver_2")
    lesson = second.settle(second.train(stage("a"), start=champion))

    assert len(trainer.jobs) == 2
    assert read_lesson(lesson, "m").started_from == "ver_2"


def test_a_worker_that_lost_the_run_puts_nothing_in_its_folder(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    """It wakes up in the middle of a training, and another is at work on the same run."""
    owner = attempt(context, tmp_path, number=2)
    kept = owner.train(stage("a"))
    owner.settle(kept)
    (kept.folder / "whose").write_text("the owner's")
    before = sorted(tmp_path.glob("*")), (tmp_path / LESSON).read_text()
    lost = attempt(context, tmp_path, heart=Lost())

    with pytest.raises(LeaseLost):
        lost.train(stage("other"))
    with pytest.raises(LeaseLost):
        lost.once("edits", lambda: "late")

    after = sorted(path for path in tmp_path.glob("*") if path != lost.scratch)
    assert (after, (tmp_path / LESSON).read_text()) == before
    assert (kept.folder / "whose").read_text() == "the owner's"


def test_a_training_that_ends_too_late_is_nobodys(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    class LosesIt(Quiet):
        def confirm(self) -> None:
            if trainer.jobs:
                raise LeaseLost("run_1", 1)

    with pytest.raises(LeaseLost):
        attempt(context, tmp_path, heart=LosesIt()).train(stage("a"))

    assert not (tmp_path / "trained-0").exists()
    assert not (tmp_path / "trained-0.json").exists()


def steps_of(made: RunBench, count: int, *, teacher: Weights | None = None) -> list[Weights]:
    """A chain of trainings, each going on from the one before."""
    weights = [made.train(stage("0"))]
    for number in range(1, count):
        step = replace(stage(str(number)), goes_on=True)
        weights.append(made.train(step, start=weights[-1], teacher=teacher))
    return weights


def test_a_lesson_says_who_taught(trainer: Trainer, context: WorkerContext, tmp_path: Path) -> None:
    champion = Weights(tmp_path / "v1")
    made = attempt(context, tmp_path, champion)
    first = made.train(stage("a"))
    second = made.train(stage("b"), start=first, teacher=first)
    last = made.train(stage("c"), start=second, teacher=champion)

    lesson = read_lesson(made.settle(last), "m")

    assert [each.teacher for each in lesson.trainings] == [None, 0, CHAMPION]
    assert lesson.started_from == "ver_1"
    teachers = [None, str(first.folder), str(champion.folder)]
    assert [job["teacher"] for job in trainer.jobs] == teachers


def test_another_teacher_is_another_training(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    made = attempt(context, tmp_path)
    first = made.train(stage("a"))
    made.train(stage("b"), start=first)

    again = attempt(context, tmp_path)
    first = again.train(stage("a"))
    again.train(stage("b"), start=first, teacher=first)

    assert len(trainer.jobs) == 3


def test_what_came_after_a_training_that_changed_is_trained_again(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    made = attempt(context, tmp_path)
    made.train(stage("b"), start=made.train(stage("a")))

    again = attempt(context, tmp_path)
    again.train(stage("b"), start=again.train(stage("other")))

    assert len(trainer.jobs) == 4


def test_old_steps_leave_the_disk_but_for_who_taught(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    made = attempt(context, tmp_path)
    teacher = made.train(stage("teacher"))
    last = steps_of(made, 9, teacher=teacher)[-1]
    left = {path.name for path in tmp_path.glob("trained-*") if path.is_dir()}
    moments = {path.name.partition(".")[0] for path in tmp_path.glob("trained-*.moments.*")}

    assert left == moments == {"trained-0", *(f"trained-{n}" for n in (6, 7, 8, 9))}
    lesson = read_lesson(made.settle(last), "m")
    assert [each.start for each in lesson.trainings] == [None, None, *range(1, 9)]
    again = attempt(context, tmp_path, number=2)
    steps_of(again, 9, teacher=again.train(stage("teacher")))
    assert len(trainer.jobs) == 10


def test_weights_that_start_something_new_stay(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    """Stages of a method are no steps of a chain, and it may come back to any of them."""
    made = attempt(context, tmp_path)
    first = made.train(stage("a"))
    for number in range(8):
        made.train(stage(str(number)), start=first)

    assert first.folder.exists()


def test_what_attempts_have_spent_adds_up_to_the_budget(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    def with_budget(number: int) -> RunBench:
        made = attempt(context, tmp_path, number=number)
        made.budget = BudgetSpec(steps=5)
        return made

    first = with_budget(1)
    weights = first.train(stage("a"))
    first.try_out([stage("t")])
    assert first.has_budget()

    second = with_budget(2)
    assert second.has_budget()  # what is done is not asked for again
    weights = second.train(stage("a"))
    assert second.has_budget()
    second.train(stage("b"), start=weights)

    assert not second.has_budget()
    assert (second.spent.steps, second.spent.tokens) == (6, 30)
    third = with_budget(3)
    assert third.has_budget()
    third.train(stage("b"), start=third.train(stage("a")))
    assert not third.has_budget()


def test_a_training_takes_no_more_steps_than_are_left(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    def with_budget(number: int) -> RunBench:
        made = attempt(context, tmp_path, number=number)
        made.budget = BudgetSpec(steps=5)
        return made

    first = with_budget(1)
    last = first.train(stage("b"), start=first.train(stage("a")))

    assert [job["stages"][0]["most_steps"] for job in trainer.jobs] == [5, 3]
    lesson = read_lesson(first.settle(last), "m")  # so that a rebuild takes as many
    assert [each.stage.most_steps for each in lesson.trainings] == [5, 3]
    again = with_budget(2)
    again.train(stage("b"), start=again.train(stage("a")))
    assert len(trainer.jobs) == 2  # what is done stays, though less is left by now


def test_without_a_ceiling_of_steps_nothing_is_said_of_them(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    attempt(context, tmp_path).train(stage("a"))

    assert "most_steps" not in trainer.jobs[0]["stages"][0]


@pytest.mark.parametrize(
    ("budget", "is_within"),
    [
        (BudgetSpec(), True),
        (BudgetSpec(tokens=100), False),
        (BudgetSpec(tokens=101, steps=11, seconds=2.1), True),
        (BudgetSpec(steps=10), False),
        (BudgetSpec(seconds=2.0), False),
    ],
)
def test_a_ceiling_that_is_reached_ends_it(budget: BudgetSpec, is_within: bool) -> None:
    assert Spent(tokens=100, steps=10, seconds=2.0).is_within(budget) is is_within


def test_tokens_that_were_generated_count(tmp_path: Path) -> None:
    account = Account(tmp_path / "spent.json")
    sampler = CountedSampler(cast(Any, ScriptedSampler(lambda _: "four")), account.add)

    sampler.rollouts([[{"role": "user", "content": "?"}]] * 3, SamplingParams(), group=2)

    assert account.total.tokens == 3 * 2 * 5  # and the token that ends each


@pytest.fixture
def engine() -> Iterator[tuple[FakeEngine, Served]]:
    engine = FakeEngine(base="m@base")
    with serve(engine.app()) as served:
        yield engine, served


@pytest.fixture
def serving_context(context: WorkerContext, engine: tuple[FakeEngine, Served]) -> WorkerContext:
    url = engine[1].url
    served = EngineSettings(url=url, connect_timeout_s=1, load_timeout_s=5)
    return replace(context, settings=context.settings.model_copy(update={"engine": served}))


def test_a_throw_away_adapter_says_whose_it_is_and_goes(
    serving_context: WorkerContext, engine: tuple[FakeEngine, Served], tmp_path: Path
) -> None:
    made = attempt(serving_context, tmp_path, number=3)

    with made.serving([Weights(tmp_path / "a"), Weights(tmp_path / "b")]):
        names = sorted(engine[0].adapters)
        is_held = may_be_held(made.scratch)

    assert [claim_of_try(name) for name in names] == [Claim("run_1", 3)] * 2
    assert all(name.startswith("m@try.") for name in names)
    assert (is_held, may_be_held(made.scratch)) == (True, False)
    assert engine[0].adapters == {}


def test_an_engine_that_is_restarted_meanwhile_gets_it_again_under_its_name(
    serving_context: WorkerContext, engine: tuple[FakeEngine, Served], tmp_path: Path
) -> None:
    made = attempt(serving_context, tmp_path)

    with made.serving([Weights(tmp_path / "a")]) as (sampler,):
        engine[0].lose_adapters()
        sampler.rollouts([[{"role": "user", "content": "Hi"}]], SamplingParams(seed=1), group=2)
        held = dict(engine[0].adapters)

    assert list(held.values()) == [str(tmp_path / "a")]
    assert engine[0].loads == [*held, *held]
    assert engine[0].unloads == [*held]


def test_no_name_is_used_for_two_trainings(
    serving_context: WorkerContext, engine: tuple[FakeEngine, Served], tmp_path: Path
) -> None:
    made = attempt(serving_context, tmp_path)
    for _ in range(3):
        with made.serving([Weights(tmp_path / "a")]):
            pass

    assert len(set(engine[0].loads)) == 3


def test_what_one_call_saw_of_users_the_next_one_knows(
    serving_context: WorkerContext, engine: tuple[FakeEngine, Served], tmp_path: Path
) -> None:
    made = attempt(serving_context, tmp_path)
    questions = [[{"role": "user", "content": f"Question {number}"}] for number in range(6)]
    params = SamplingParams(seed=1)
    engine[0].token_s = 0.005
    engine[0].users = 1
    made.base.chat(questions[:1], params)
    engine[0].users = 0

    with made.serving([Weights(tmp_path / "a")]) as (sampler,):
        sampler.rollouts(questions, params)

    assert engine[0].most_running == 1


def test_an_engine_that_starts_is_waited_for(
    context: WorkerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has had the time that a start may take."""
    away = EngineSettings(url="http://127.0.0.1:9", connect_timeout_s=1, start_timeout_s=0.05)
    waits: list[float] = []
    monkeypatch.setattr(bench.time, "sleep", waits.append)
    made = attempt(
        replace(context, settings=context.settings.model_copy(update={"engine": away})), tmp_path
    )

    with pytest.raises(SamplingError, match="does not answer"), made.serving([Weights(tmp_path)]):
        pass

    assert waits
    assert may_be_held(made.scratch)


def test_a_trainer_stands_back_for_what_serves(
    trainer: Trainer, context: WorkerContext, tmp_path: Path
) -> None:
    attempt(context, tmp_path).train(stage("a"))

    assert trainer.jobs[0]["nice"] == 19


def test_what_the_engine_will_not_let_go_of_keeps_its_files(
    serving_context: WorkerContext,
    engine: tuple[FakeEngine, Served],
    trainer: Trainer,
    tmp_path: Path,
) -> None:
    made = attempt(serving_context, tmp_path)
    weights = made.train(stage("a"))

    with made.serving([weights]):
        engine[0].refuses_unload = 500
    drop_trained(tmp_path)

    assert may_be_held(made.scratch)
    assert weights.folder.exists()


@pytest.mark.parametrize("name", ["m@v1.0a1b2c3d", "m@base", "m", "m@try.0a1b2c3d4e5f"])
def test_other_names_are_nobodys_throw_away(name: str) -> None:
    assert claim_of_try(name) is None


def test_a_run_asks_the_verifier_that_its_method_names_and_only_listed_services(
    context: WorkerContext, tmp_path: Path
) -> None:
    working = attempt(context, tmp_path)
    one = Attempt(Prompt("p", (), answers=("8",)), "8")

    assert working.verifier(AnswerVerifier()).verify([one]) == [Verdict(True)]
    assert working.verifier(HttpVerifier(url="http://127.0.0.1:9/")).verify([one]) == [
        Verdict(None, "the service is not on the operator's list")
    ]


def test_what_threads_spend_at_once_is_counted_whole(tmp_path: Path) -> None:
    path = tmp_path / "spent.json"

    with ThreadPoolExecutor(8) as pool:  # as samplers are asked, each with an account of its own
        list(pool.map(lambda _: Account(path).add(Spent(tokens=3, steps=1)), range(200)))

    assert Account(path).total == Spent(tokens=600, steps=200)
    assert list(tmp_path.iterdir()) == [path]
