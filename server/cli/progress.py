"""Follows a run: a bar per stage on a terminal, sparse lines elsewhere. Reads only the run's JSON."""

import json
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from server.cli.client import Api
from server.cli.console import Failure

STAGES = {
    "chunk": "chunk",
    "quiz": "quiz",
    "outer_loop": "outer loop",
    "self_edits": "self-edits",
    "try_out": "trying out",
    "training": "training",
    "exam": "exam",
    "swap": "swap",
}
"""Stages of learning in order, with the words shown for them."""

_OPTIONAL = frozenset({"outer_loop", "try_out", "probe", "prompts", "revisions"})
"""Stages that show only when a run comes to them."""

REPLIES_STAGES = {
    "chunk": "chunk",
    "quiz": "quiz",
    "replies": "replies",
    "training": "training",
    "exam": "exam",
    "swap": "swap",
}
"""The same of the methods that learn from replies, distill and heal."""

PROMPT_STAGES = {
    "chunk": "material",
    "quiz": "quiz",
    "probe": "probe",
    "prompts": "prompts",
    "replies": "replies",
    "revisions": "revisions",
    "rollouts": "rollouts",
    "training": "training",
    "exam": "exam",
    "swap": "swap",
}
"""The same of the methods that learn from prompts. Rollouts and training take turns."""

REBUILD_STAGES = {"chunk": "material", "training": "training", "compare": "compare"}
"""Stages of training an old version again."""

ENDS = ("succeeded", "failed", "cancelled")
LINE_EVERY_S = 15.0
_VERDICT_COLOURS = {"promote": "green", "reject": "red", "inconclusive": "yellow"}


def follow(api: Api, run_id: str, console: Console) -> dict[str, Any]:
    """Show a run until it is over; returns its last state."""
    show = _Bars(console) if console.is_terminal else _Lines(console)
    run: dict[str, Any] = {}
    with show:
        for run in changes(api, run_id):
            show.update(run)
    print_outcome(run, console)
    return run


def changes(api: Api, run_id: str) -> Iterator[dict[str, Any]]:
    """The run whenever it changed, until it is over. A broken stream is taken up again."""
    failures = 0
    while True:
        try:
            for event, data in api.events(f"/api/v1/runs/{run_id}/events"):
                if event == "run":
                    failures = 0
                    run = json.loads(data)
                    yield run
                    if run["status"] in ENDS:
                        return
        except Failure:
            failures += 1
            if failures > 5:
                raise
        time.sleep(0.5)


def wait_for_run(api: Api, document_id: str, timeout_s: float = 60) -> str | None:
    """The id of the newest run over a document; None when none starts in time, or ever will."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := api.get("/api/v1/runs", document_id=document_id, limit=1)["data"]:
            return str(found[0]["id"])
        state = api.get(f"/api/v1/documents/{document_id}")["state"]
        if state in ("unreadable", "quarantined"):
            return None
        time.sleep(0.5)
    return None


def print_outcome(run: dict[str, Any], console: Console) -> None:
    """How a run ended: the verdict with its reasons, or the error."""
    if run["status"] != "succeeded":
        why = escape(run["error"] or "no error was recorded")
        console.print(f"[red]run {run['status']}[/]: {why}")
        return
    if run.get("kind") == "rebuild":
        _print_comparison(run["report"]["rebuild"], console)
        return
    verdict = str(run["verdict"])
    colour = _VERDICT_COLOURS.get(verdict, "white")
    console.print(f"Verdict: [bold {colour}]{verdict}[/] {run['version'] or ''}")
    for reason in run["report"].get("exam", {}).get("reasons", []):
        console.print(f"  · {reason}", markup=False)
    for need in run["report"].get("exam", {}).get("needs", []):
        about = f" about {', '.join(need['documents'])}" if need["documents"] else ""
        console.print(f"  ? {need['items']} more questions{about} would tell", markup=False)


def _print_comparison(found: dict[str, Any], console: Console) -> None:
    """Whether a version came out the same a second time, and what may be why not."""
    if found["is_identical"]:
        console.print(f"[green]identical[/]: {found['version']} came out the same, bit by bit")
        return
    console.print(
        f"[yellow]different[/]: {found['differing']} of {found['tensors']} tensors of "
        f"{found['version']}, by at most {found['max_abs_difference']:.3g} "
        f"({found['max_relative_difference']:.3g} of the largest value)"
    )
    for name, change in {**found["libraries"], **found["environment"]}.items():
        console.print(f"  · {name}: was {change['then']}, is {change['now']}", markup=False)


class _Bars:
    """One bar per stage; those before the current one are full."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("  {task.description:<11}"),
            BarColumn(bar_width=36),
            MofNCompleteColumn(),
            Elapsed(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, run: dict[str, Any]) -> None:
        if not self._tasks:
            stages = _stages_of(run)
            self._tasks = {
                stage: self._progress.add_task(
                    words, total=None, start=False, visible=stage not in _OPTIONAL
                )
                for stage, words in stages.items()
            }
        order = list(self._tasks)
        is_over = run["status"] == "succeeded"
        now = len(order) if is_over else _position(order, run["stage"])
        for position, stage in enumerate(order):
            task = self._tasks[stage]
            if position < now:
                self._fill(task)
            elif position == now:
                self._progress.start_task(task)
                done, total = run["done"], run["total"] or None
                self._progress.update(task, completed=done, total=total, visible=True)

    def _fill(self, task: TaskID) -> None:
        state = self._progress.tasks[task]
        if not state.finished:
            self._progress.start_task(task)
            total = state.total or 1
            self._progress.update(task, completed=total, total=total)


class _Lines:
    """A line when a stage begins, and now and then within it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage: str | None = None
        self._said_at = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, run: dict[str, Any]) -> None:
        stage, now = run["stage"], time.monotonic()
        if stage is None or (stage == self._stage and now < self._said_at + LINE_EVERY_S):
            return
        self._stage, self._said_at = stage, now
        steps = f" {run['done']}/{run['total']}" if run["total"] else ""
        self._console.print(f"  {now - self._began:4.0f} s  {STAGES.get(stage, stage)}{steps}")


def _stages_of(run: dict[str, Any]) -> dict[str, str]:
    if run.get("kind") == "rebuild":
        return REBUILD_STAGES
    if run["method"] in ("distill", "heal"):
        return REPLIES_STAGES
    return STAGES if str(run["method"]).startswith("seal") else PROMPT_STAGES


def _position(order: list[str], stage: str | None) -> int:
    return order.index(stage) if stage in order else -1
