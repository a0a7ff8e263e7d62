"""What a method may use while it learns: the engine, the trainer, and a memory that outlives it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from adapters.lesson import Stage, Weights
from adapters.rewards.verifiers import Verifier
from adapters.sampling import RolloutSampler
from adapters.spec import VerifierSpec
from adapters.types import JSON, ExamItem, Opinion, Prompt, SourceDocument, Task

BUDGET_ENDED = "The budget was used up before the training; raise it, or let less be learnt."
"""Why there is no update."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a run is to learn."""

    documents: tuple[SourceDocument, ...] = ()
    """All of them, learnt before or not."""
    new_documents: frozenset[str] = frozenset()
    """Ids of those that the champion has not learnt."""
    tasks: tuple[Task, ...] = ()
    held_out: frozenset[str] = frozenset()
    """The exam's prompts, none of which may be taught."""
    quiz: tuple[ExamItem, ...] = ()
    """Checked questions that the split left to training."""
    prompts: tuple[Prompt, ...] = ()
    """Conversations of traffic and of users' sets, none of them held out."""
    opinions: tuple[Opinion, ...] = ()
    """What users said of replies to conversations that are not held out."""
    champion: Weights | None = None
    """What serves now; None: the base model, or a champion that must not be built on."""
    accepted: tuple["AcceptedSelfEdit", ...] = ()
    """Edits of these documents that earlier runs of the line have kept."""
    champion_generation: int = 0
    """How many times in a row the champion was trained on from another version."""
    has_learnt_prompts: bool = False
    """Whether the champion, or a version that it was trained on from, has learnt from prompts: a
    training from the base on documents would throw that skill away."""


@dataclass(frozen=True, slots=True)
class AcceptedSelfEdit:
    """A free edit of one passage that taught more than the others: what an editor learns from."""

    document_id: str
    prompt: str
    """What the editor was asked, the passage included."""
    text: str
    """What was kept of its reply, in the form that the prompt asks for."""
    score: float
    """Share of the questions right after learning it, in 0..1."""
    base_score: float
    """The same of the base model."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a method has made of an assignment."""

    weights: Weights | None
    """None: no update; `report["no_update"]` says why."""
    report: dict[str, JSON]
    generation: int = 0
    """0 when trained from the clean base, one more than the champion's when trained on from it."""
    accepted: tuple[AcceptedSelfEdit, ...] = ()
    """Edits that the outer loop kept."""


class Workbench(Protocol):
    """One run's tools. Any of them raises what ends the run: a cancel, a lost lease."""

    @property
    def base(self) -> RolloutSampler:
        """The untouched base model, in the serving engine."""
        ...

    @property
    def writer(self) -> RolloutSampler:
        """Who writes lessons: the champion, or the base where the champion must not."""
        ...

    @property
    def editor(self) -> RolloutSampler:
        """Who writes self-edits: the line's own editor where it has one, else the base."""
        ...

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Announces what is being done, with its time in the run's report; stages do not nest."""
        ...

    def progress(self, done: int, total: int) -> None:
        """How far the stage is; also notices that the run is to stop."""
        ...

    def once(self, name: str, make: Callable[[], JSON]) -> JSON:
        """What `make` returns, made once per run: an attempt after a crash gets the same."""
        ...

    def has_budget(self) -> bool:
        """Whether the run may go on learning; if not, a method ends with what it has."""
        ...

    def verifier(self, spec: VerifierSpec) -> Verifier:
        """Who says whether replies are right."""
        ...

    def train(
        self, stage: Stage, *, start: Weights | None = None, teacher: Weights | None = None
    ) -> Weights:
        """Train from the clean base, or on from `start`, and write it into the lesson.

        `teacher` are weights of an earlier training of the same lesson, or the champion's, that
        the stage's distillations learn from; None is the base with its adapter off.

        An attempt after a crash that asks for the same gets what is there already. The last
        weights trained are the candidate; each start is the champion's or the stage's before. Of
        trainings that go on from one another only the last four, and those that have taught, may
        be asked for again: the others leave the disk.

        Raises:
            TrainingFailed (workers): it diverged, or the trainer died.
        """
        ...

    def try_out(self, stages: Sequence[Stage]) -> list[Weights | None]:
        """Train throw-away adapters from the clean base, together; None where one diverged.

        All of one `lora`. They are no part of the lesson and go with the run.
        """
        ...

    def serving(self, weights: Sequence[Weights]) -> AbstractContextManager[list[RolloutSampler]]:
        """While it lasts the engine holds these, under names never used before or again."""
        ...
