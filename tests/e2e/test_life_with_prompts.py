"""A life on real vLLM in which nobody teaches: traffic comes in, a policy that is `auto` finds that
its answers can be voted on, TTRL sharpens them, the gate lets the version pass, traffic is better.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.puzzles import Puzzle, make_puzzles, share_solved
from tests.support.stack import (
    TINY_MODEL,
    TINY_SETTINGS,
    Stack,
    constant_traffic,
    running_stack,
    wait_for,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MODEL = "tiny"
TAG = "reading"

HOT = 1.8
"""The tiny model is surer of itself than a real one: at this temperature its replies scatter as those
of a small model do at 1. It answers about 32 % of the puzzles rightly then, and after TTRL 60 %."""

TTRL: dict[str, Any] = {
    "training": {"learning_rate": 1e-3, "batch_size": 256},
    "rollouts": {
        "prompts_per_step": 16,
        "group": 16,
        "steps": 12,
        "temperature": HOT,
        "max_new_tokens": 12,
    },
    "prompt_exam": {
        "share": 0.4,
        "max_items": 128,
        "temperature": HOT,
        "votes": 16,
        "least_agreement": 0.2,
        "max_new_tokens": 12,
    },
    "prompts_per_user": 1.0,
}
"""Large steps and short replies, for so small a model; all of the traffic is one user's."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("life-with-prompts")
    variables = TINY_SETTINGS | {
        "EVERLEARN_LEARNING__TTRL": json.dumps(TTRL),
        "EVERLEARN_LEARNING__ROLLOUTS_BESIDE_USERS": "16",  # one at a time takes eight minutes
    }
    with running_stack(home, model=MODEL, source=TINY_MODEL, variables=variables) as stack:
        yield stack


def ask_all(stack: Stack, puzzles: Sequence[Puzzle], *, tag: str | None = None) -> list[str]:
    """One sampled reply to each, as users ask: side by side."""
    client = stack.openai()
    more: dict[str, Any] = {"metadata": {"task": tag}} if tag else {"store": False}

    def ask(numbered: tuple[int, Puzzle]) -> str:
        number, puzzle = numbered
        completion = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": puzzle.prompt}],
            temperature=HOT,
            seed=number,
            max_tokens=12,
            **more,
        )
        return completion.choices[0].message.content or ""

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, enumerate(puzzles)))


def test_traffic_is_learnt_from_by_a_policy_that_chooses_for_itself(stack: Stack) -> None:
    asked, fresh = make_puzzles(1, 280), make_puzzles(2, 200)
    champion_before = stack.champion()
    before = share_solved(fresh, ask_all(stack, fresh))
    ask_all(stack, asked, tag=TAG)
    order = {
        "name": TAG,
        "method": "auto",
        "material": {"kind": "prompts", "tag": TAG},
        "when": {"count": 220},
    }

    with constant_traffic(stack, clients=1) as traffic:
        policy = stack.api.post("/policies", json=order)
        assert policy.status_code == 201, policy.text
        runs = wait_for(
            lambda: [
                row for row in stack.api.get("/runs").json()["data"] if row["method"] == "ttrl"
            ],
            "a run that the policy has begun",
            timeout_s=120,
        )
        run = stack.finished(runs[0]["id"])
        after = share_solved(fresh, ask_all(stack, fresh))

    assert (run["status"], run["verdict"]) == ("succeeded", "promote"), run
    decision = stack.api.get(f"/policies/{policy.json()['id']}").json()["decision"]
    assert decision["method"] == "ttrl"
    assert "seal" not in decision["why"]
    slices = {row["name"]: row for row in run["report"]["exam"]["slices"]}
    assert slices["new prompts"]["challenger"] > slices["new prompts"]["champion"]
    assert run["report"]["quiz"]["prompts"]["graders"] == {
        "majority": slices["new prompts"]["items"]
    }
    assert stack.champion() == run["version"] != champion_before
    assert after >= before + 0.1
    assert traffic.failures == []
    assert {champion_before, run["version"]} <= set(traffic.versions)
