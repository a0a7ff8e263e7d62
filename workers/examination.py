"""The exam: champion and challenger answer the same questions on the engine that will serve."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.evaluation.drift import Recorder, measure_drift
from adapters.evaluation.drift_checks import PastDrift
from adapters.evaluation.exam import Answer, sit_exam
from adapters.evaluation.gate import GENERAL, NEW_PROMPTS, Decision, decide
from adapters.evaluation.general import load_general_suite
from adapters.evaluation.generalization import Scores, generalization_factor
from adapters.evaluation.grading import grader_of
from adapters.evaluation.prompt_exam import HeldPrompt, VerifierOf, no_verifier, sit_prompts
from adapters.sampling import REFUSED
from adapters.spec import MethodConfig, SeptConfig
from adapters.types import JSON, ExamItem, Grader
from server.services import documents, evaluations, registry
from workers import colder, prompt_exam, replicas
from workers.colder import Colder
from workers.context import WorkerContext
from workers.heart import Heart
from workers.judging import Seat, seat_judge
from workers.material import Material
from workers.sampler import EngineSampler
from workers.task_exam import longest_answer, task_items
from workers.taught import taught_before


@dataclass(frozen=True, slots=True)
class Exam:
    """Both sets of answers, paired by item, and the gate's decision."""

    items: tuple[ExamItem, ...]
    champion: tuple[Answer, ...]
    challenger: tuple[Answer, ...]
    decision: Decision
    judge: Seat | None = None
    """Who graded the questions for the judge; None where there was none."""
    taught_before: int = 0
    """Questions left out, because a version that the challenger was trained on from was taught them."""
    untold: int = 0
    """Prompts left out, because nobody could mark both replies to them."""
    refused: int = 0
    """Prompts left out, because the engine does not take them, such as too long ones."""
    colder: Colder | None = None
    """The champion at a colder decoding; None where the method does not sharpen."""

    def to_json(self) -> dict[str, JSON]:
        """The decision, and how far the judge of it is believed."""
        judge: JSON = self.judge.to_json() if self.judge else None
        told = [self.colder.sentence] if self.colder else []
        return {
            **self.decision.to_json(),
            "reasons": [*self.decision.reasons, *told],
            "colder": self.colder.to_json() if self.colder else None,
            "judge": judge,
            "taught_before": self.taught_before,
            "prompts_not_marked": self.untold,
            "prompts_refused": self.refused,
            "generalization": self.generalization(),
        }

    def generalization(self) -> float | None:
        """The factor of the gains on the run's prompts and on the general suite; None without both."""
        found = {result.name: result for result in self.decision.slices if result.items}
        if not {NEW_PROMPTS, GENERAL} <= found.keys():
            return None
        here, elsewhere = found[NEW_PROMPTS], found[GENERAL]
        return generalization_factor(
            Scores(here.champion / here.items, elsewhere.champion / elsewhere.items),
            Scores(here.challenger / here.items, elsewhere.challenger / elsewhere.items),
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per question, with the columns of EvaluationResult; the grader is who graded."""
        theirs = {answer.item_id: answer for answer in self.champion}
        ours = {answer.item_id: answer for answer in self.challenger}
        is_judge_trusted = self.judge is not None and self.judge.sampler is not None
        for item in self.items:
            yield {
                "item_id": item.id,
                "document_id": item.document_id,
                "kind": item.kind,
                "grader": grader_of(item, is_judge_trusted=is_judge_trusted),
                "prompt": item.prompt,
                "expected": list(item.answers),
                "champion_reply": theirs[item.id].reply,
                "champion_is_correct": theirs[item.id].is_correct,
                "challenger_reply": ours[item.id].reply,
                "challenger_is_correct": ours[item.id].is_correct,
            }


def examine(
    context: WorkerContext,
    material: Material,
    version_id: str,
    asked: Collection[str],
    config: MethodConfig,
    heart: Heart,
    *,
    prompts: Sequence[HeldPrompt] = (),
    verifier_of: VerifierOf = no_verifier,
) -> Exam:
    """Ask both the items of these ids, without the documents in sight, and decide.

    Questions that came after the lesson was written are left to the next run: the lesson may have
    taught them. So are those that a version was taught which the challenger was trained on from: a
    user may have sent them since. Held-out prompts are never taught, by any run.
    """
    with context.database.unit_of_work() as session:
        version = registry.by_id(session, version_id)
        ids = [document.id for document in material.documents]
        stored = documents.exam_items(session, ids, split="exam")
        past = [PastDrift(*found) for found in evaluations.accepted_drift(session, version)]
    held_out = [*stored, *task_items(material, config)]
    known = taught_before(context, version)
    chosen = [item for item in held_out if item.id in set(asked)]
    about_material = [item for item in chosen if not known.covers(item.prompt)]
    questions = (*about_material, *load_general_suite(context.settings.learning.general_suite))
    challenger_name = registry.engine_name(material.adapter.name, version)
    thresholds = context.settings.learning.gate
    total = 2 * (len(questions) + len(prompts))
    # Both sit the exam on the same replicas, question by question: two engines may round apart.
    urls = replicas.urls_holding(context, material.champion_engine_name, challenger_name)

    judge = _seated(context, material, questions)

    def sampler(engine_name: str) -> EngineSampler:
        return EngineSampler(context.settings, engine_name, urls)

    def ask(engine_name: str, already: int) -> tuple[Sequence[Answer], list[str], Recorder]:
        recorder = Recorder(sampler(engine_name))
        answers = sit_exam(
            questions,
            recorder,
            max_new_tokens=longest_answer(material, config),
            judge_sampler=judge.sampler if judge else None,
            on_progress=lambda done, _: heart.progress(already + done, total),
        )
        asked_so_far = already + len(questions)
        replies = sit_prompts(
            prompts,
            recorder,
            on_progress=lambda done, _: heart.progress(asked_so_far + done, total),
        )
        return answers, replies, recorder

    champion, champion_replies, champion_said = ask(material.champion_engine_name, 0)
    challenger, challenger_replies, challenger_said = ask(challenger_name, total // 2)
    asked_prompts = [held.item for held in prompts]
    refused = {
        item.id
        for said in (champion_said, challenger_said)
        for item, reply in zip(asked_prompts, said.replies_to(asked_prompts), strict=True)
        if reply.finish_reason == REFUSED
    }
    sheet = prompt_exam.marked(
        prompts, champion_replies, challenger_replies, config, verifier_of, refused=refused
    )
    items = (*questions, *sheet.items)
    champion = [*champion, *sheet.champion]
    challenger = [*challenger, *sheet.challenger]
    compared = None
    if isinstance(config, SeptConfig):
        compared = colder.compare(
            prompts,
            sheet,
            config,
            verifier_of,
            champion=sampler(material.champion_engine_name),
            challenger=sampler(challenger_name),
            on_progress=heart.progress,
        )
    drift = measure_drift(
        items,
        champion_said.replies_to(items),
        challenger_said.replies_to(items),
        base=sampler(material.base_engine_name),
        model=sampler(challenger_name),
        most=thresholds.drift_prompts,
        places=thresholds.drift_places,
        max_new_tokens=config.exam.max_new_tokens,
        base_replies=champion_said.replies_to(items) if material.champion is None else None,
        on_progress=heart.progress,
    )
    decision = decide(
        items,
        champion,
        challenger,
        new_documents=material.new_documents,
        earlier_documents=material.earlier_documents,
        thresholds=thresholds,
        drift=drift,
        past=past,
        prompts=sheet.held_out,
    )
    return Exam(
        items,
        tuple(champion),
        tuple(challenger),
        decision,
        judge,
        taught_before=len(chosen) - len(about_material),
        untold=sheet.untold,
        refused=sheet.refused,
        colder=compared,
    )


def _seated(context: WorkerContext, material: Material, items: Sequence[ExamItem]) -> Seat | None:
    """The base model as judge, where a question asks for one."""
    if all(item.grader is not Grader.JUDGE for item in items):
        return None
    urls = replicas.urls_holding(context, material.base_engine_name)
    base = EngineSampler(context.settings, material.base_engine_name, urls)
    return seat_judge(context, base, base_hash=material.adapter.base_hash)
