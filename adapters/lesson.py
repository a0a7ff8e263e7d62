"""What is trained, as data: stages of samples, and the weights that come of them.

A lesson is written down before it is trained, stage by stage, so that a run goes on where a killed
one stopped, and a version can be trained again from its record alone.
"""

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from pydantic import TypeAdapter

from adapters.spec import LoraSpec, LossSpec, TrainingSpec
from adapters.types import Distillation, GivenReply, SelfEdit, TextPair, Unit


@dataclass(frozen=True, slots=True)
class Stage:
    """Samples that one training goes through, and how.

    Texts become samples by the tokenizer, in the trainer. Edits of kind replay are anchors: they
    are not learnt, on them the model is held to its base.
    """

    lora: LoraSpec
    training: TrainingSpec
    seed: int
    edits: tuple[SelfEdit, ...] = ()
    distillations: tuple[Distillation, ...] = ()
    replies: tuple[GivenReply, ...] = ()
    """One that leaves its prompt no room in `training.max_tokens` is refused, as a distillation is."""
    pairs: tuple[TextPair, ...] = ()
    units: tuple[Unit, ...] = ()
    """Samples and pairs in tokens, made by the method itself."""
    anchors_per_epoch: int = 0
    anchor_share: float = 0.0
    """Least part of a pass's weight that the anchors have: where much is learnt, each weighs more."""
    losses: LossSpec = field(default_factory=LossSpec)
    goes_on: bool = False
    """Whether the optimiser goes on from that of the training that it starts from, its moments and
    its count of steps: one step of many. Otherwise it begins anew."""
    strength: float = 1.0
    """Part of what was trained that the saved adapter adds to the base, in (0, 1]: the weights then
    lie so far on the way from the base's to the trained ones (WiSE-FT, arXiv 2109.01903). Only of a
    training from the clean base: one that goes on from an adapter keeps all."""

    most_steps: int | None = None
    """Optimiser steps after which it ends, the rate's schedule made for so many; None: all."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to learn in it."""
        return not (self.edits or self.distillations or self.replies or self.pairs or self.units)

    def digest(self) -> str:
        """sha256 of everything that decides the weights, the start apart."""
        return sha256(json.dumps(stages_to_json([self])).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Weights:
    """A trained adapter: a PEFT folder, which never changes again."""

    folder: Path

    @property
    def moments(self) -> Path:
        """Where the optimiser's moments at the end of the training are, if they were kept: beside
        the folder, which holds what an artifact holds and nothing else."""
        return self.folder.with_name(f"{self.folder.name}.moments.safetensors")


_STAGES = TypeAdapter(list[Stage])


def stages_to_json(stages: list[Stage]) -> list[object]:
    """Stages as plain JSON."""
    rows: list[dict[str, object]] = _STAGES.dump_python(stages, mode="json")
    for row in rows:
        if row["most_steps"] is None:  # so that digests from before there was one stay
            del row["most_steps"]
    return [*rows]


def stages_from_json(rows: object) -> list[Stage]:
    """The stages that `stages_to_json` wrote.

    Raises:
        ValueError: they are none.
    """
    return _STAGES.validate_python(rows)
