"""An on-policy run without end: ``python -m benchmarks.learner URL MODEL FOLDER BESIDE NICE``.

Step by step it samples from what it has trained, trains on what it sampled, and has the engine serve
that. How far it is goes, line by line, to `learnt.jsonl` in FOLDER: completions since the start, how
many were broken off for users, and steps trained. Ends when it is told to (SIGTERM).

Args:
    BESIDE: `learning.rollouts_beside_users`; as many as `learning.rollout_concurrency`, and
        learning makes no room.
    NICE: niceness of the run, its trainer included.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from adapters.lesson import Stage, Weights
from adapters.spec import LoraSpec, TrainingSpec
from adapters.types import Component, Rollout, SamplingParams, TrainingSample, reply_mask
from benchmarks.decoders import EngineDecoder
from benchmarks.learning_bench import LocalBench
from benchmarks.swap import QUESTIONS
from server.core.settings import LearningSettings, Settings

GROUP = 16
PROMPTS_PER_STEP = 4
TOKENS = 64
LEARNT = "learnt.jsonl"


def learn(decoder: EngineDecoder, bench: LocalBench, folder: Path) -> None:
    """Sample and train, step by step, until the process is ended."""
    weights: Weights | None = None
    step = before = 0
    with (folder / LEARNT).open("a") as file:

        def tell(done: int, _: int) -> None:
            aborted = decoder.courtesy.aborted
            line = {"completions": before + done, "aborted": aborted, "steps": step}
            file.write(json.dumps(line) + "\n")
            file.flush()

        while True:
            first = step * PROMPTS_PER_STEP
            questions = [QUESTIONS[(first + n) % len(QUESTIONS)] for n in range(PROMPTS_PER_STEP)]
            with ExitStack() as stack:
                policy = decoder.base
                if weights is not None:
                    [policy] = stack.enter_context(decoder.serving([weights]))
                groups = policy.rollouts(
                    [[{"role": "user", "content": question}] for question in questions],
                    SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=step),
                    group=GROUP,
                    on_progress=tell,
                )
            before += PROMPTS_PER_STEP * GROUP
            weights = bench.train(_stage(groups, step), start=weights)
            step += 1


def _stage(groups: Sequence[Sequence[Rollout]], step: int) -> Stage:
    """One step on the policy's own words; what it learns does not matter here."""
    units = tuple(_sample(rollout) for group in groups for rollout in group)
    training = TrainingSpec(learning_rate=1e-5, epochs=1, batch_size=len(units), warmup_share=0)
    return Stage(LoraSpec(), training, seed=step, units=units)


def _sample(rollout: Rollout) -> TrainingSample:
    ids = rollout.prompt_ids + rollout.ids
    return TrainingSample(
        ids,
        reply_mask(len(rollout.prompt_ids), len(ids)),
        {Component.CE: (1.0,) * len(rollout.ids)},
        mass=len(rollout.ids),
    )


if __name__ == "__main__":
    _url, _model, _folder, _beside, _nice = sys.argv[1:]
    os.nice(int(_nice))
    _learning = LearningSettings(rollouts_beside_users=int(_beside))
    _decoder = EngineDecoder(Settings(_env_file=None, learning=_learning), _url)
    _place = Path(_folder)
    learn(_decoder, LocalBench(_decoder, Path(_model), _place, threads=1), _place)
