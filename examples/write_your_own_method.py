"""A method of one's own in one file: the model learns from its own best of several replies.

One round of RAFT (Dong et al., arXiv 2304.06767): N replies to each prompt, and one that a verifier
calls right is learnt as it stands. `tests/contract/test_method_conformance.py` puts it through the
battery that every method passes. To have it in the server, see docs/methods/adding.md.
"""

from typing import Literal

from pydantic import Field, TypeAdapter

from adapters.lesson import Stage
from adapters.methods import Assignment, Outcome, Workbench
from adapters.methods.continual import begin
from adapters.sampling import RolloutSampler
from adapters.spec import AnswerVerifier, PromptSettings, VerifierSpec
from adapters.types import JSON, Attempt, EditKind, Prompt, SamplingParams, SelfEdit

_EDITS = TypeAdapter(list[SelfEdit])


class BestOfConfig(PromptSettings):
    """RAFT on prompts: right replies of its own are learnt as they stand."""

    type: Literal["best-of"] = "best-of"
    verifier: VerifierSpec = AnswerVerifier()
    replies: int = Field(default=4, ge=1)
    """Replies to each prompt, of which at most one is learnt."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Length of one reply."""


class BestOf:
    """RAFT for one config; holds no state between runs."""

    def __init__(self, config: BestOfConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`."""
        config = self._config
        beginning = begin(assignment, config)
        prompts = [
            prompt
            for prompt in assignment.prompts
            if prompt.messages[-1]["content"] not in assignment.held_out
        ]
        if len(prompts) < config.min_prompts:
            return Outcome(None, {"no_update": f"{len(prompts)} prompts are too few."})
        if not bench.has_budget():
            return Outcome(None, {"no_update": "There is no budget."})
        with bench.stage("rollouts"):  # asked once: an attempt after a crash learns the same
            policy = bench.base if beginning.start is None else bench.writer
            name = beginning.name("best-of")
            kept = bench.once(name, lambda: self._ask(prompts, policy, bench))
            edits = _EDITS.validate_python(kept)
        if not edits:
            return Outcome(None, {"no_update": "No reply was right."})
        stage = Stage(config.lora, config.training, config.seed, edits=tuple(edits))
        with bench.stage("training"):
            weights = bench.train(stage, start=beginning.start)
        said = {"best_of": {"learnt": len(edits)}, "continual": beginning.report(0)}
        return Outcome(weights, said, beginning.generation)

    def _ask(self, prompts: list[Prompt], policy: RolloutSampler, bench: Workbench) -> JSON:
        config = self._config
        params = SamplingParams(config.max_new_tokens, 1.0, seed=config.seed)
        groups = policy.rollouts([one.messages for one in prompts], params, group=config.replies)
        pairs = zip(prompts, groups, strict=True)
        attempts = [Attempt(prompt, one.text) for prompt, group in pairs for one in group]
        verdicts = bench.verifier(config.verifier).verify(attempts)
        right: dict[str, SelfEdit] = {}
        for attempt, verdict in zip(attempts, verdicts, strict=True):
            if verdict.is_right and len(attempt.prompt.messages) == 1:
                asked = attempt.prompt.messages[0]["content"]
                edit = SelfEdit(EditKind.TASK, None, asked, attempt.reply, "model")
                right.setdefault(asked, edit)
        rows: JSON = _EDITS.dump_python(list(right.values()), mode="json")
        return rows
