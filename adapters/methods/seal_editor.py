"""SEAL's outer step: an adapter that writes better self-edits, kept as a line of its own.

Zweiger et al., arXiv 2506.10943, section 3.1 (the M-step of ReST^EM): supervised fine-tuning on the
edits that were kept, with the loss on the edit alone. Ours differs:
- the editor is an adapter beside the line, not merged into the model that serves, so users never
  talk to it, and a bad one can be taken back;
- it learns what was left of an edit after grounding, not all that was written;
- rank 16 and not 64, because every LoRA request of the engine pays for the highest rank;
- it must pass an exam of its own: its edits of documents that no editor learns teach more than
  those of the editor before it, each learnt by a throw-away adapter and scored as in the loop.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from statistics import fmean

from pydantic import TypeAdapter

from adapters.evaluation.gate import Decision, Verdict
from adapters.lesson import Stage
from adapters.methods.free_edits import recall, write_free_edits
from adapters.methods.grounding import Grounded, ground
from adapters.methods.held_out import HeldOut
from adapters.methods.outer_loop import measure, scoring_questions
from adapters.methods.workbench import BUDGET_ENDED, Assignment, Outcome, Workbench
from adapters.sampling import Sampler
from adapters.spec import EditorExamSpec, SealEditorConfig
from adapters.types import JSON, EditKind, SelfEdit, SourceDocument

_LOTS = 10_000
_RESAMPLES = 10_000
_SEEDS_APART = 1000


@dataclass(frozen=True, slots=True)
class EditorScore:
    """What two editors' edits of one document teach: mean shares of the questions, in 0..1."""

    document_id: str
    questions: int
    champion: float
    challenger: float


class SealEditor:
    """The outer step for one config."""

    def __init__(self, config: SealEditorConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`; taught are the accepted edits of documents that are not held out."""
        edits = self._lesson(assignment)
        report: dict[str, JSON] = {
            "edits": len(edits),
            "documents": len({edit.document_id for edit in edits}),
            "accepted": len(assignment.accepted),
        }
        if len(edits) < self._config.min_edits:
            why = (
                f"{len(edits)} accepted edits may be learnt; min_edits asks for "
                f"{self._config.min_edits}. More come of runs with the outer loop."
            )
            return Outcome(None, {"editor": report, "no_update": why})
        if not bench.has_budget():
            return Outcome(None, {"editor": report, "no_update": BUDGET_ENDED})
        with bench.stage("training"):
            weights = bench.train(
                Stage(
                    lora=self._config.lora,
                    training=self._config.training,
                    seed=self._config.seed,
                    edits=tuple(edits),
                )
            )
        return Outcome(weights, {"editor": report})

    def _lesson(self, assignment: Assignment) -> list[SelfEdit]:
        """Accepted edits as chat turns: of texts that are still the same, without exam questions."""
        exam = HeldOut(assignment.held_out)
        documents = {document.id: document for document in assignment.documents}
        edits = []
        for accepted in assignment.accepted:
            document = documents.get(accepted.document_id)
            if document is None or is_held_out(document, self._config.editor_exam):
                continue
            edit = recall(document, accepted.prompt, accepted.text)
            if edit is not None and not any(
                piece.question is not None and exam.covers(piece.question) for piece in edit.pieces
            ):
                edits.append(
                    SelfEdit(EditKind.TASK, document.id, accepted.prompt, accepted.text, "model")
                )
        return edits


def is_held_out(document: SourceDocument, spec: EditorExamSpec) -> bool:
    """Whether the document is for the exam: by its id, so in every run alike."""
    lot = int(sha256(document.id.encode()).hexdigest()[:8], 16) % _LOTS
    return lot < spec.held_out_share * _LOTS


def compare_editors(
    assignment: Assignment,
    bench: Workbench,
    *,
    champion: Sampler,
    challenger: Sampler,
    name: str,
    config: SealEditorConfig,
) -> list[EditorScore]:
    """Both editors write about held-out documents; what their edits teach, document by document.

    Args:
        name: of this comparison; an attempt after a crash goes on with the one of the same name.

    Raises:
        SamplingError: the engine failed.
    """
    exam = HeldOut(assignment.held_out)
    least = config.inner.outer.min_questions
    held_out = [
        document
        for document in assignment.documents
        if is_held_out(document, config.editor_exam)
        and len(scoring_questions(document, assignment.quiz, exam)) >= least
    ][: config.editor_exam.documents]
    scores = []
    for number, document in enumerate(held_out):
        bench.progress(number, len(held_out))
        comparison = _Comparison(document, config, exam, config.seed + _SEEDS_APART * number)
        kept = bench.once(
            f"{name}-{document.id}",
            lambda comparison=comparison: comparison.make(  # type: ignore[misc]
                assignment, bench, champion, challenger
            ),
        )
        if kept is not None:
            scores.append(_SCORE.validate_python(kept))
    bench.progress(len(held_out), len(held_out))
    return scores


def decide_editor(scores: Sequence[EditorScore], spec: EditorExamSpec, *, seed: int) -> Decision:
    """Promote an editor whose edits teach more, by a one-sided paired bootstrap over documents."""
    if len(scores) < spec.min_documents:
        reason = (
            f"{len(scores)} held-out documents have enough questions; at least "
            f"{spec.min_documents} are needed"
        )
        return Decision(Verdict.INCONCLUSIVE, (reason,), (), None)
    gains = [score.challenger - score.champion for score in scores]
    mean = fmean(gains)
    low = _lower_bound(gains, spec.alpha, seed)
    said = f"its edits teach {mean:+.3f} of the questions, over {len(gains)} documents"
    if low > 0:
        return Decision(Verdict.PROMOTE, (f"{said}, at least {low:+.3f}",), (), None)
    verdict = Verdict.REJECT if mean <= 0 else Verdict.INCONCLUSIVE
    return Decision(verdict, (f"{said}; chance may explain {low:+.3f}",), (), None)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Two editors at work on one document."""

    document: SourceDocument
    config: SealEditorConfig
    exam: HeldOut
    seed: int

    def make(
        self, assignment: Assignment, bench: Workbench, champion: Sampler, challenger: Sampler
    ) -> JSON:
        """The score as plain JSON; None if they teach so many questions that too few are left."""
        theirs, ours = self._written(champion, bench), self._written(challenger, bench)
        questions = scoring_questions(self.document, assignment.quiz, self.exam, [*theirs, *ours])
        if len(questions) < self.config.inner.outer.min_questions:
            return None
        scores = measure(
            self.document,
            [each.edits or None for each in (*theirs, *ours)],
            questions,
            bench,
            config=self.config.inner,
        )

        def taught(number: int) -> float:
            by_seed = scores.candidates[number]
            if not by_seed:  # nothing was left of it, so nothing changes
                return scores.base
            return fmean(score or 0.0 for score in by_seed)  # a training that diverged: nothing

        means = [taught(number) for number in range(len(scores.candidates))]
        count = len(theirs)
        score = EditorScore(
            self.document.id, len(questions), fmean(means[:count]), fmean(means[count:])
        )
        row: JSON = _SCORE.dump_python(score, mode="json")
        return row

    def _written(self, editor: Sampler, bench: Workbench) -> list[Grounded]:
        inner = self.config.inner
        written = write_free_edits(
            self.document,
            inner.outer.prompts,
            self.config.editor_exam.candidates,
            editor=editor,
            spec=inner.self_edits,
            seed=self.seed,
        )
        return ground(
            self.document,
            written,
            reader=bench.base,
            exam=self.exam,
            is_apart=True,
            needs_agreement=inner.self_edits.needs_agreement,
        )


_SCORE = TypeAdapter(EditorScore)


def _lower_bound(gains: Sequence[float], alpha: float, seed: int) -> float:
    """Of the mean: the alpha quantile of the means of resampled documents."""
    draw = random.Random(seed)
    means = sorted(fmean(draw.choices(gains, k=len(gains))) for _ in range(_RESAMPLES))
    return means[int(alpha * _RESAMPLES)]
