"""Rollouts without end, as a learning run asks for them: ``python -m benchmarks.learner URL BESIDE PATH``.

After each group of questions a JSON line goes to the file at PATH: completions and tokens since the
start, and how many were broken off for users. Ends when it is told to (SIGTERM).

Args:
    BESIDE: `learning.rollouts_beside_users`; as many as `learning.rollout_concurrency`, and
        learning makes no room.
"""

import json
import sys
from pathlib import Path

from adapters.types import SamplingParams
from benchmarks.stub import BASE
from benchmarks.swap import CONTEXT, QUESTIONS
from server.core.settings import LearningSettings, Settings
from workers.courtesy import Courtesy, Manners
from workers.sampler import EngineSampler

GROUP = 16
TOKENS = 64
PROMPTS_PER_STEP = 4


def learn(url: str, settings: Settings, path: Path) -> None:
    """Ask, step by step, until the process is ended."""
    courtesy = Courtesy(Manners.of(settings.learning))
    sampler = EngineSampler(settings, BASE, [url], courtesy=courtesy)
    completions = tokens = step = 0
    with path.open("a") as file:
        while True:
            first = step * PROMPTS_PER_STEP
            questions = [QUESTIONS[(first + n) % len(QUESTIONS)] for n in range(PROMPTS_PER_STEP)]
            params = SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=step)
            groups = sampler.rollouts(
                [[{"role": "user", "content": CONTEXT + question}] for question in questions],
                params,
                group=GROUP,
            )
            step += 1
            completions += sum(map(len, groups))
            tokens += sum(len(rollout.ids) for group in groups for rollout in group)
            line = {"completions": completions, "tokens": tokens, "aborted": courtesy.aborted}
            file.write(json.dumps(line) + "\n")
            file.flush()


if __name__ == "__main__":
    _url, _beside, _path = sys.argv[1:]
    _learning = LearningSettings(rollouts_beside_users=int(_beside))
    learn(_url, Settings(_env_file=None, learning=_learning), Path(_path))
