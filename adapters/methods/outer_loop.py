"""ReST^EM over self-edits: of several edits of a document, the one that teaches most is kept.

Zweiger et al., arXiv 2506.10943, section 3.1 and algorithm 1: each candidate is learnt by a LoRA of
its own, which is asked about the document without seeing it; the share it answers is the reward, and
the best candidate is kept (the paper's knowledge setting keeps the best of five). Ours differs:
- candidates are grounded first, so the reward chooses among true ones;
- the best one must also beat the base model, else nothing is kept;
- all trials of a document are trained together and asked together;
- the questions are those that the split left to training, never the exam's.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean

from pydantic import TypeAdapter

from adapters.corpus.reading import read_text
from adapters.evaluation.exam import sit_exam
from adapters.lesson import Stage
from adapters.methods.free_edits import (
    PassageEdit,
    as_self_edits,
    titled_passages,
    write_free_edits,
)
from adapters.methods.grounding import Grounded, ground
from adapters.methods.held_out import HeldOut
from adapters.methods.workbench import AcceptedSelfEdit, Assignment, Workbench
from adapters.sampling import Sampler
from adapters.spec import EditPrompt, SealConfig
from adapters.types import JSON, ExamItem, ItemKind, ProgressCallback, SourceDocument

_AT_ONCE = 8
_SEEDS_APART = 1000
"""Between the first seeds of two documents' candidates, so that none is drawn twice."""


@dataclass(frozen=True, slots=True)
class Searched:
    """What the loop has found: kept edits by document, and an account of every document."""

    kept: Mapping[str, tuple[PassageEdit, ...]] = field(default_factory=dict)
    accepted: tuple[AcceptedSelfEdit, ...] = ()
    report: dict[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares of the questions right, in 0..1: the base's, and each candidate's by seed."""

    base: float
    candidates: list[list[float | None]]
    """None where the training diverged; no entry at all where there was nothing to train on."""

    def mean(self, candidate: int) -> float | None:
        """Over the seeds that came to something."""
        known = [score for score in self.candidates[candidate] if score is not None]
        return fmean(known) if known else None

    def best(self) -> int | None:
        """The candidate with the highest mean, the first of equals; None if none has one."""
        means = {n: mean for n in range(len(self.candidates)) if (mean := self.mean(n)) is not None}
        return max(means, key=lambda n: (means[n], -n)) if means else None


@dataclass(slots=True)
class _Search:
    """The search for one document's edit, and what is written down of it."""

    document: SourceDocument
    seed: int
    on_progress: ProgressCallback
    """Says how many documents are done, whatever it is told; and notices a cancel."""
    row: dict[str, JSON]
    kept: tuple[PassageEdit, ...] = ()


class OuterLoop:
    """The search for one config."""

    def __init__(self, config: SealConfig) -> None:
        self._config = config
        self._spec = config.outer

    def search(self, assignment: Assignment, bench: Workbench) -> Searched:
        """Look for the best edit of each new document, up to as many as config and budget allow.

        Raises:
            SamplingError: the engine failed.
        """
        new = [doc for doc in assignment.documents if doc.id in assignment.new_documents]
        exam = HeldOut(assignment.held_out)
        searched = new[: self._spec.documents]
        searches = [
            _Search(
                document,
                self._config.seed + _SEEDS_APART * (done + 1),
                partial(_progress, bench, done, len(searched)),
                {"document_id": document.id},
            )
            for done, document in enumerate(searched)
        ]
        kept: dict[str, tuple[PassageEdit, ...]] = {}
        accepted: list[AcceptedSelfEdit] = []
        for search in searches:
            accepted += self._search(search, exam, assignment.quiz, bench)
            if search.kept:
                kept[search.document.id] = search.kept
        bench.progress(len(searches), len(searches))
        rows: list[JSON] = [search.row for search in searches]
        report: dict[str, JSON] = {
            "documents": rows,
            "kept": len(kept),
            "not_searched": len(new) - len(searches),
        }
        return Searched(kept, tuple(accepted), report)

    def _search(
        self, search: _Search, exam: HeldOut, quiz: Sequence[ExamItem], bench: Workbench
    ) -> list[AcceptedSelfEdit]:
        """Fill in what is found for one document; the edits accepted, one for each passage."""
        if not bench.once(f"outer-{search.document.id}-budget", bench.has_budget):
            search.row["skipped"] = "The budget is used up."
            return []
        questions = scoring_questions(search.document, quiz, exam)
        if self._has_too_few(search, questions):
            return []
        candidates = self._candidates(search, exam, bench)
        questions = scoring_questions(search.document, quiz, exam, candidates)
        if self._has_too_few(search, questions):
            return []
        if not any(candidate.edits for candidate in candidates):
            search.row["candidates"] = self._candidate_rows(candidates, None)
            search.row["skipped"] = "Nothing that was written is borne out by the text."
            return []
        scores = self._scores(search, candidates, questions, bench)
        return self._choose(search, candidates, scores)

    def _has_too_few(self, search: _Search, questions: Sequence[ExamItem]) -> bool:
        least = self._spec.min_questions
        search.row["questions"] = len(questions)
        if len(questions) >= least:
            return False
        search.row["skipped"] = (
            f"{len(questions)} questions were left to training that no candidate teaches; "
            f"outer.min_questions asks for {least}. A lower exam.exam_share leaves more."
        )
        return True

    def _candidates(self, search: _Search, exam: HeldOut, bench: Workbench) -> list[Grounded]:
        def write() -> JSON:
            written = write_free_edits(
                search.document,
                self._spec.prompts,
                self._spec.candidates,
                editor=bench.editor,
                spec=self._config.self_edits,
                seed=search.seed,
                on_progress=search.on_progress,
            )
            grounded = ground(
                search.document,
                written,
                reader=bench.base,
                exam=exam,
                is_apart=True,
                needs_agreement=self._config.self_edits.needs_agreement,
                on_progress=search.on_progress,
            )
            rows: JSON = _GROUNDED.dump_python(grounded, mode="json")
            return rows

        return _GROUNDED.validate_python(bench.once(f"outer-{search.document.id}-edits", write))

    def _scores(
        self,
        search: _Search,
        candidates: Sequence[Grounded],
        questions: Sequence[ExamItem],
        bench: Workbench,
    ) -> Scores:
        def score() -> JSON:
            scores = measure(
                search.document,
                [
                    each.edits if each.edits or self._is_control(number) else None
                    for number, each in enumerate(candidates)
                ],
                questions,
                bench,
                config=self._config,
                on_progress=search.on_progress,
            )
            rows: JSON = _SCORES.dump_python(scores, mode="json")
            return rows

        return _SCORES.validate_python(bench.once(f"outer-{search.document.id}-scores", score))

    def _choose(
        self, search: _Search, candidates: Sequence[Grounded], scores: Scores
    ) -> list[AcceptedSelfEdit]:
        search.row["base_score"] = scores.base
        search.row["candidates"] = self._candidate_rows(candidates, scores)
        best = scores.best()
        score = None if best is None else scores.mean(best)
        if best is None or score is None:
            search.row["skipped"] = "Every trial diverged."
            return []
        if score <= scores.base:
            search.row["skipped"] = "No candidate answers more than the base model does."
            return []
        if not candidates[best].edits:
            search.row["skipped"] = "The text alone taught most."
            return []
        search.row["kept"] = best
        search.kept = candidates[best].edits
        return [
            AcceptedSelfEdit(search.document.id, edit.prompt, edit.as_reply(), score, scores.base)
            for edit in search.kept
        ]

    def _candidate_rows(self, candidates: Sequence[Grounded], scores: Scores | None) -> list[JSON]:
        return [
            {
                "prompt": str(self._prompt_of(number)),
                "pieces": sum(len(edit.pieces) for edit in candidate.edits),
                "dropped": dict(candidate.dropped),
                "score": scores.mean(number) if scores else None,
                "by_seed": [*scores.candidates[number]] if scores else [],
            }
            for number, candidate in enumerate(candidates)
        ]

    def _prompt_of(self, number: int) -> EditPrompt:
        return self._spec.prompts[number % len(self._spec.prompts)]

    def _is_control(self, number: int) -> bool:
        """Whether this candidate is the text alone, on purpose."""
        return self._prompt_of(number) is EditPrompt.NO_PROMPT


def measure(
    document: SourceDocument,
    candidates: Sequence[Sequence[PassageEdit] | None],
    questions: Sequence[ExamItem],
    bench: Workbench,
    *,
    config: SealConfig,
    on_progress: ProgressCallback | None = None,
) -> Scores:
    """Train every candidate under every seed, together, and ask all of them and the base at once.

    Each is trained with the document's passages; None is no candidate and is not trained.

    Raises:
        SamplingError: the engine failed.
    """
    trials = [
        (number, _trial(document, candidate, seed, config))
        for number, candidate in enumerate(candidates)
        if candidate is not None
        for seed in range(config.outer.seeds)
    ]
    trained = bench.try_out([stage for _, stage in trials])
    weights = [each for each in trained if each is not None]

    def share(sampler: Sampler) -> float:
        answers = sit_exam(
            questions,
            sampler,
            max_new_tokens=config.exam.max_new_tokens,
            on_progress=on_progress,
        )
        return sum(answer.is_correct for answer in answers) / len(answers)

    with bench.serving(weights) as samplers, ThreadPoolExecutor(_AT_ONCE) as pool:
        base, *shares = pool.map(share, [bench.base, *samplers])
    scores = Scores(base, [[] for _ in candidates])
    known = iter(shares)
    for (number, _), each in zip(trials, trained, strict=True):
        scores.candidates[number].append(None if each is None else next(known))
    return scores


def scoring_questions(
    document: SourceDocument,
    quiz: Sequence[ExamItem],
    exam: HeldOut,
    candidates: Sequence[Grounded] = (),
) -> list[ExamItem]:
    """The questions that score edits of a document: none the exam's, none that an edit teaches."""
    taught = HeldOut(
        piece.question
        for candidate in candidates
        for edit in candidate.edits
        for piece in edit.pieces
        if piece.question is not None
    )
    return [
        item
        for item in quiz
        if item.document_id == document.id
        and item.kind is not ItemKind.GENERAL
        and not exam.covers(item.prompt)
        and not taught.covers(item.prompt)
    ]


def _trial(
    document: SourceDocument, edits: Sequence[PassageEdit], seed: int, config: SealConfig
) -> Stage:
    passages = titled_passages(document, config.self_edits.passages_per_document)
    return Stage(
        lora=config.lora,
        training=config.training.model_copy(update={"epochs": config.outer.epochs}),
        seed=config.seed + seed,
        edits=(*passages, *as_self_edits(document, edits, read_text(document.rule_text))),
        strength=config.strength_for(len(document.chunks)),
    )


_GROUNDED = TypeAdapter(list[Grounded])
_SCORES = TypeAdapter(Scores)


def _progress(bench: Workbench, done: int, total: int, *_: int) -> None:
    bench.progress(done, total)
