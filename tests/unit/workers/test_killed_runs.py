"""A worker that is killed anywhere in a method's work: the next one goes on to the same lesson.

Every question to a model and every training is a place to die. Fails where a method keeps something
in memory only, draws anew, or asks or trains again what is done.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.lesson import Weights
from adapters.methods import AcceptedSelfEdit, Assignment, build_method
from adapters.methods.edit_prompts import edit_prompt
from adapters.sampling import Sampler
from adapters.spec import (
    ContinualSpec,
    DistillConfig,
    EditorExamSpec,
    EditPrompt,
    FewShotConfig,
    FewShotReplay,
    HealConfig,
    HealSpec,
    MethodConfig,
    OuterLoopSpec,
    ReplaySpec,
    SealConfig,
    SealEditorConfig,
    SelfEditSpec,
)
from adapters.types import (
    JSON,
    ChatMessage,
    Example,
    ItemKind,
    ProgressCallback,
    SamplingParams,
    SourceDocument,
    Task,
    build_item,
)
from server.core.settings import Settings
from server.db.session import Database
from server.services.rebuilds import LESSON
from server.services.runs import Claim
from tests.conftest import RecordingQueue
from tests.support.trainings import scripted
from tests.support.workbench import ScriptedSampler
from workers import bench
from workers.bench import Origin, RunBench
from workers.context import WorkerContext
from workers.heart import Heart

TEXT = (
    "The Harbour of Quill was dug in 1874 by Ada Penhallow. It has 12 cranes. The oldest crane is "
    "called Long Meg. The master is Otto Brane."
)
ORM = "The Tower of Orm was built in 1611. It has 90 steps, and its keeper is Odile Brandt."
DOCUMENTS = (
    SourceDocument("quill", "Quill", TEXT, (TEXT,)),
    SourceDocument("orm", "Orm", ORM, (ORM,)),
)
QUIZ = tuple(
    build_item(ItemKind.MODEL, of, prompt=prompt, answers=(answer,))
    for of, prompt, answer in (
        ("quill", "When was the Harbour of Quill dug?", "1874"),
        ("quill", "How many cranes does the harbour have?", "12"),
        ("quill", "Which name has the oldest of the cranes?", "Long Meg"),
        ("orm", "When was the Tower of Orm built?", "1611"),
        ("orm", "How many steps has the Tower of Orm?", "90"),
    )
)
TASK = Task(
    "tsk",
    "kinds",
    "Fruit or root?",
    (Example("a red apple", "fruit"), Example("a carrot", "root"), Example("a pear", "fruit")),
    (Example("a plum", "fruit"),),
)
ACCEPTED = AcceptedSelfEdit(
    "quill",
    edit_prompt(EditPrompt.REWRITE, title="Quill", passage=TEXT),
    "The Harbour of Quill has 12 cranes.",
    1.0,
    0.0,
)
KINDS = (EditPrompt.REWRITE, EditPrompt.IMPLICATIONS)
EDIT_PROMPTS = {edit_prompt(kind, title="Quill", passage=TEXT) for kind in KINDS}
REPLAY = ReplaySpec(prompts=3, prompts_per_epoch=2)
OUTER = OuterLoopSpec(
    is_enabled=True,
    prompts=KINDS,
    candidates=2,
    min_questions=1,
)
SEAL = SealConfig(replay=REPLAY, self_edits=SelfEditSpec(rewordings=1), outer=OUTER)
ON = ContinualSpec(mode="continue")
METHODS: dict[str, MethodConfig] = {
    "seal": SEAL,
    "seal, trained on": SEAL.model_copy(update={"continual": ON}),
    "distill": DistillConfig(replay=REPLAY),
    "distill, trained on": DistillConfig(replay=REPLAY, continual=ON),
    "heal": HealConfig(heal=HealSpec(prompts=3, replies_per_prompt=2, kept_answers=2)),
    "few-shot": FewShotConfig(candidates=3, together=2, replay=FewShotReplay(prompts=2)),
    "editor": SealEditorConfig(min_edits=1, editor_exam=EditorExamSpec(held_out_share=0)),
}


class Killed(BaseException):
    """What no method can handle."""


def says(params: SamplingParams, said: Sequence[ChatMessage]) -> str:
    """One model for all; sampled replies differ by their seed."""
    prompt = said[-1]["content"]
    if prompt in EDIT_PROMPTS:
        return "The Harbour of Quill was dug in 1874 and has 12 cranes."
    if "Answer only yes or no" in prompt:
        return "Yes."
    if "Text: " in prompt:
        return prompt.partition("Text: ")[2].partition("\n\n")[0]
    if "Answer with JSON" in prompt:
        kinds = dict.fromkeys(("basic", "size", "chained", "repeated", "colours"), False)
        training = {"loss_on": "output", "learning_rate": 1e-4 * (1 + (params.seed or 0) % 3)}
        return json.dumps({"augmentations": kinds, "training": training | {"epochs": 2}})
    return f"I do not know ({params.seed})."


def knows(said: Sequence[ChatMessage]) -> str:
    """A model that was taught."""
    prompt = said[-1]["content"]
    if "Output:" in prompt:
        asked = prompt.rpartition("Input:\n")[2].partition("\nOutput:")[0]
        return {each.input: each.output for each in TASK.examples}.get(asked, "no idea")
    return "It was dug in 1874, has 12 cranes and 90 steps, and was built in 1611."


@dataclass
class World:
    """Counts what is asked and trained, and kills who asks at the number ordered."""

    dies_at: int | None = None
    count: int = 0
    trained: int = 0
    """Trainings of the lesson that came to their end."""
    made: list[str] = field(default_factory=list)
    """What was asked for once, whole."""

    def step(self) -> None:
        self.count += 1
        if self.count == self.dies_at:
            raise Killed

    def train(self, job: dict[str, Any], *, folder: Path, heart: object) -> dict[str, Any]:
        self.step()
        for output in job["outputs"]:
            Path(output).mkdir(parents=True)
        self.trained += job["checkpoints"] is not None
        return {"seconds": 1.0, "tokens": 1, "environment": {}}


class Mortal(ScriptedSampler):
    """A model of a world, which may die when it is asked."""

    def __init__(self, world: World, reply: Callable[..., str]) -> None:
        super().__init__(lambda _: "")
        self._world, self._says = world, reply

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        self._world.step()
        return [self._says(params, conversation) for conversation in conversations]


class Deaf:
    """A heart that hears of nothing."""

    def begin(self, stage: str) -> None: ...

    def progress(self, done: int, total: int) -> None: ...

    def confirm(self) -> None: ...


class Bench(RunBench):
    """The real workbench, with models that speak by script."""

    world: World

    def _sampler(self, engine_name: str) -> Any:
        return Mortal(self.world, says)

    def once(self, name: str, make: Callable[[], JSON]) -> JSON:
        def noted() -> JSON:
            value = make()
            self.world.made.append(name)
            return value

        return super().once(name, noted)

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[Sampler]]:
        yield [Mortal(self.world, lambda _, said: knows(said)) for _ in weights]


@dataclass
class Run:
    """One run of a method, attempt after attempt."""

    context: WorkerContext
    folder: Path
    config: MethodConfig
    champion: Weights
    attempts: int = 0

    def attempt(self, world: World) -> None:
        self.attempts += 1
        is_task = isinstance(self.config, FewShotConfig)
        bench_ = Bench(
            self.context,
            cast(Heart, Deaf()),
            Origin("m", "base", "m@base", "m@base", "m@base", self.champion, "ver_1"),
            folder=self.folder,
            owned=Claim("run_1", self.attempts),
        )
        bench_.world = world
        bench_.scratch.mkdir(parents=True)
        assignment = Assignment(
            documents=() if is_task else DOCUMENTS,
            new_documents=frozenset({"quill"}),
            tasks=(TASK,) if is_task else (),
            held_out=frozenset({"Who is the master of the harbour?"}),
            quiz=QUIZ,
            champion=self.champion,
            accepted=(ACCEPTED,),
        )
        outcome = build_method(self.config).learn(assignment, bench_)
        assert outcome.weights is not None
        bench_.settle(outcome.weights)

    def lesson(self) -> str:
        return (self.folder / LESSON).read_text()


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_comes_to_the_same_lesson_and_asks_for_nothing_twice(
    method: str,
    settings: Settings,
    database: Database,
    queue: RecordingQueue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = WorkerContext(settings, database, cast(Any, queue), "test")
    champion = Weights(tmp_path / "v0001")
    champion.folder.mkdir()
    shape = {"r": METHODS[method].lora.rank, "lora_alpha": METHODS[method].lora.alpha}
    (champion.folder / "adapter_config.json").write_text(json.dumps(shape))

    def run_in(name: str) -> Run:
        folder = tmp_path / name
        return Run(context, folder, METHODS[method], champion)

    whole, world = run_in("whole"), World()
    monkeypatch.setattr(bench, "Trainer", scripted(world.train))
    whole.attempt(world)
    assert world.made or method == "editor"
    assert method != "seal" or "outer-quill-scores" in world.made

    for place in range(1, world.count + 1):
        run, again = run_in(f"killed-{place}"), World(dies_at=place)
        monkeypatch.setattr(bench, "Trainer", scripted(again.train))
        with pytest.raises(Killed):
            run.attempt(again)
        run.attempt(again)

        assert run.lesson() == whole.lesson(), place
        assert sorted(again.made) == sorted(world.made), place
        assert again.trained == world.trained, place
