"""Where a training begins when the line has learnt before: at the base, or at the champion.

Retraining from the clean base on everything forgets nothing. Where that costs too much, a training
goes on from the champion on the new documents, with On-Policy Replay (arXiv 2605.29495): the
champion answers questions on earlier documents, and its right answers are taught as plain rows.
How often in a row is bounded. What was learnt from prompts is no text that could be taught anew: a
run on prompts begins at the champion, and so do later ones on documents. Merging edit upon edit is
what SEAL's own experiment did, and it forgot; it is not here.
"""

import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from adapters.lesson import Weights
from adapters.methods.held_out import HeldOut
from adapters.methods.workbench import Assignment, Workbench
from adapters.rewards.answers import is_correct
from adapters.sampling import RolloutSampler, Sampler
from adapters.spec import MethodSettings
from adapters.types import JSON, EditKind, ExamItem, SamplingParams, SelfEdit

_ASKED_PER_ROW = 4
"""Questions asked for each row wanted: a small model answers many of them wrongly."""
_EDITS = TypeAdapter(list[SelfEdit])


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a training starts, and what it takes up from there."""

    assignment: Assignment
    """With the documents and checked questions that are to be taught; the exam stays whole."""
    start: Weights | None
    """None: the clean base."""
    generation: int
    why: str
    """Why it starts there, for the run's report."""
    rehearsed: tuple[ExamItem, ...] = ()
    """Checked questions on what the start knows already."""

    def name(self, of: str) -> str:
        """A name for `Workbench.once`: after a crash another champion may serve, and then what was
        made for the old one is of no use."""
        return of if self.start is None else f"{of}-on-{self.start.folder.name}"

    def report(self, rows: int) -> dict[str, JSON]:
        """For the run's report; `rows` were replayed."""
        mode = "retrain" if self.start is None else "continue"
        documents: list[JSON] = [document.id for document in self.assignment.documents]
        return {
            "mode": mode,
            "why": self.why,
            "generation": self.generation,
            "documents": documents,
            "replay_rows": rows,
        }

    def student(self, bench: Workbench) -> RolloutSampler:
        """The model as it is before the training."""
        return bench.base if self.start is None else bench.writer


def begin(assignment: Assignment, config: MethodSettings) -> Beginning:
    """Decide where the training of an assignment starts."""
    champion = assignment.champion
    reason = _why_not_on(assignment, config)
    if reason is not None or champion is None:
        return Beginning(assignment, None, 0, reason or "")
    new = assignment.new_documents
    narrowed = replace(
        assignment,
        documents=tuple(each for each in assignment.documents if each.id in new),
        quiz=tuple(item for item in assignment.quiz if item.document_id in new),
    )
    earlier = {each.id for each in assignment.documents} - new
    generation = assignment.champion_generation + 1
    return Beginning(
        narrowed,
        champion,
        generation,
        f"the champion is built on, for the {_nth(generation)} time in a row"
        + _against_the_config(assignment, config),
        rehearsed=_on(earlier, assignment.quiz),
    )


def shape_of(weights: Weights) -> tuple[int, int] | None:
    """Rank and alpha of an adapter; None where its config cannot be read."""
    try:
        fields = json.loads((weights.folder / "adapter_config.json").read_text())
        return int(fields["r"]), int(fields["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def rehearse(
    items: Sequence[ExamItem],
    student: Sampler,
    *,
    rows: int,
    held_out: frozenset[str],
    seed: int,
    max_tokens: int,
) -> list[SelfEdit]:
    """At most `rows` right answers of the student's own, as plain rows; wrong ones are dropped.

    Raises:
        SamplingError: the engine failed.
    """
    exam = HeldOut(held_out)
    allowed = [item for item in items if not exam.covers(item.prompt)]
    random.Random(seed).shuffle(allowed)
    asked = allowed[: rows * _ASKED_PER_ROW]
    if not asked:
        return []
    replies = student.chat(
        [[{"role": "user", "content": item.prompt}] for item in asked],
        SamplingParams(max_tokens=max_tokens, stop=("\n",)),
    )
    return [
        SelfEdit(EditKind.QUESTION, item.document_id, item.prompt, reply.strip(), "model")
        for item, reply in zip(asked, replies, strict=True)
        if is_correct(reply, item.answers)
    ][:rows]


def replayed(
    beginning: Beginning, bench: Workbench, config: MethodSettings, *, new_rows: int
) -> list[SelfEdit]:
    """The rows on earlier documents beside `new_rows` new ones; none when all is taught anew.

    Raises:
        SamplingError: the engine failed.
    """
    share = config.continual.replay_share
    if beginning.start is None or not share:
        return []

    def ask() -> JSON:
        edits = rehearse(
            beginning.rehearsed,
            beginning.student(bench),
            rows=max(1, round(share * new_rows)),
            held_out=beginning.assignment.held_out,
            seed=config.seed,
            max_tokens=config.exam.max_new_tokens,
        )
        rows: JSON = _EDITS.dump_python(edits, mode="json")
        return rows

    return _EDITS.validate_python(bench.once(beginning.name("on_policy_replay"), ask))


def _why_not_on(assignment: Assignment, config: MethodSettings) -> str | None:
    """Why the training starts at the base; None when it may go on from the champion."""
    most = config.continual.max_generations
    is_kept = assignment.has_learnt_prompts and not _is_on_prompts(assignment)
    if config.continual.mode == "retrain" and not is_kept:
        return "the config retrains from the base"
    if assignment.champion is None:
        return "the base serves, or the champion saw what was deleted since"
    if not (assignment.new_documents or _is_on_prompts(assignment)):
        return "no document is new to the champion"
    if assignment.champion_generation >= most and not _is_irreplaceable(assignment):
        return f"the champion was trained on {most} times in a row, which is the most"
    if shape_of(assignment.champion) != (config.lora.rank, config.lora.alpha):
        return "the champion has another rank or alpha than the config"
    return None


def _is_on_prompts(assignment: Assignment) -> bool:
    return bool(assignment.prompts or assignment.opinions)


def _is_irreplaceable(assignment: Assignment) -> bool:
    """Whether the champion knows what this training could not teach from the base."""
    if _is_on_prompts(assignment):
        return bool(assignment.documents)
    return assignment.has_learnt_prompts


def _against_the_config(assignment: Assignment, config: MethodSettings) -> str:
    """What the config would have otherwise, and why it is not done."""
    if not _is_irreplaceable(assignment):
        return ""
    wanted = []
    if config.continual.mode == "retrain":
        wanted.append("the config would retrain")
    if assignment.champion_generation >= config.continual.max_generations:
        wanted.append(f"{config.continual.max_generations} times is the most")
    if not wanted:
        return ""
    known = "of documents" if _is_on_prompts(assignment) else "from prompts"
    return f"; {' and '.join(wanted)}, but the base has not learnt what it knows {known}"


def _on(documents: Collection[str], quiz: Sequence[ExamItem]) -> tuple[ExamItem, ...]:
    return tuple(item for item in quiz if item.document_id in documents)


def _nth(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
