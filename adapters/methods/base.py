"""What every adaptation method offers: a plan of training text, made before any training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from adapters.sampling import Sampler
from adapters.types import JSON, ExamItem, ProgressCallback, SelfEdit, SourceDocument


@dataclass(frozen=True, slots=True)
class LessonPlan:
    """The self-edits to train on, and an account of what was written and what was dropped."""

    edits: list[SelfEdit]
    report: dict[str, JSON] = field(default_factory=dict)


class Method(Protocol):
    """Turns documents into a lesson plan; training itself is the same for all methods."""

    def plan(
        self,
        documents: Sequence[SourceDocument],
        *,
        sampler: Sampler,
        base_sampler: Sampler | None = None,
        held_out: frozenset[str] = frozenset(),
        quiz: Sequence[ExamItem] = (),
        on_progress: ProgressCallback | None = None,
    ) -> LessonPlan:
        """Write the self-edits of all documents.

        `sampler` is the served model; `base_sampler` the untouched base, which answers the replay
        prompts (`sampler` does where it is not given). No edit has a prompt of `held_out`, the
        exam's, or nearly one; `quiz` are checked questions that the split left to training.

        Raises:
            SamplingError: the engine failed. A poor model is no error: what it writes is dropped.
        """
        ...
