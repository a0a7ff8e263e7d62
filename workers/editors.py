"""The exam of an editor: both editors write, and what their edits teach is compared."""

from dataclasses import asdict
from typing import Any

from adapters.methods import Assignment
from adapters.methods.seal_editor import compare_editors, decide_editor
from adapters.spec import SealEditorConfig
from server.services import registry
from workers import replicas
from workers.bench import RunBench
from workers.context import WorkerContext
from workers.examination import Exam
from workers.material import Material
from workers.sampler import EngineSampler


def examine(
    context: WorkerContext,
    material: Material,
    version_id: str,
    assignment: Assignment,
    config: SealEditorConfig,
    bench: RunBench,
) -> tuple[Exam, list[dict[str, Any]]]:
    """The decision, and the rows that it rests on: one for each document that was written about.

    Raises:
        SamplingError: the engine failed.
    """
    with context.database.unit_of_work() as session:
        version = registry.by_id(session, version_id)
    name = registry.engine_name(material.adapter.name, version)
    scores = compare_editors(
        assignment,
        bench,
        champion=bench.editor,
        challenger=EngineSampler(context.settings, name, replicas.urls_holding(context, name)),
        name=f"editors-{material.champion_revision}",  # another champion is another comparison
        config=config,
    )
    decision = decide_editor(scores, config.editor_exam, seed=config.seed)
    return Exam((), (), (), decision), [asdict(score) for score in scores]
