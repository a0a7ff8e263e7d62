"""KTO on thumbs: liked replies become likelier than the reference finds them, disliked ones less.

Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv 2402.01306. Each
reply's log-ratio to the reference is held against z0, an estimate of how far the model has moved
from it; beyond that, more of the same is worth less and less. No pairs are needed. Ours differs:
- the reference is the base with its adapter off, or the champion where the training begins there;
- liked and disliked ones are balanced from their numbers, within the paper's 1 : 1 to 4 : 3;
- the replies were sampled by earlier versions, so only opinions on recent ones are taken, the
  training is short, and after each pass KL(start || policy) is measured on the start's own replies:
  a pass that went too far is taken back, and ends the learning;
- one user's share is capped, and who likes and dislikes the same reply is not heard on it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pydantic import TypeAdapter

from adapters.evaluation.drift import divergences_of
from adapters.lesson import Stage, Weights
from adapters.methods.continual import Beginning, begin
from adapters.methods.lengths import prompt_lengths
from adapters.methods.prompt_sets import REPEATED, fault_of, key_of, plain, shared_out
from adapters.methods.workbench import Assignment, Outcome, Workbench
from adapters.sampling import WHY_REFUSED, MeasuringSampler, NotScored, Reply, RolloutSampler
from adapters.spec import KtoConfig, LossSpec
from adapters.types import JSON, GivenReply, Opinion, SamplingParams

_MOST_LIKED_WEIGHT = 4 / 3
"""How much more all liked replies together may weigh than all disliked ones, in the paper."""
_REPLIES = TypeAdapter(list[Reply])


@dataclass(frozen=True, slots=True)
class Balance:
    """Weights of a liked and of a disliked reply: the paper's lambdas."""

    liked: float
    disliked: float


class Kto:
    """KTO for one config; holds no state between runs."""

    def __init__(self, config: KtoConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`."""
        left_out: Counter[str] = Counter()
        with bench.stage("prompts"):
            opinions = self._usable(assignment, bench, left_out)
        liked = sum(opinion.is_liked is True for opinion in opinions)
        disliked = len(opinions) - liked
        report: dict[str, JSON] = {
            "liked": liked,
            "disliked": disliked,
            "left_out": dict(+left_out),
        }
        if why := self._too_few(liked, disliked):
            return Outcome(None, {"no_update": why, "kto": report})
        balance = balanced(liked, disliked)
        report["weights"] = {"liked": balance.liked, "disliked": balance.disliked}
        beginning = begin(assignment, self._config)
        course = _Course(self._config, beginning, bench, opinions, balance)
        weights = course.run()
        report |= course.report()
        said: dict[str, JSON] = {"kto": report, "continual": beginning.report(0)}
        if weights is None:
            return Outcome(None, {"no_update": f"No pass was kept: {course.stopped}.", **said})
        return Outcome(weights, said, beginning.generation)

    def _usable(
        self, assignment: Assignment, bench: Workbench, left_out: Counter[str]
    ) -> list[Opinion]:
        exam = frozenset(map(plain, assignment.held_out))
        back = self._config.kto.versions_back
        sound: list[Opinion] = []
        for opinion in assignment.opinions:
            if fault := thumb_fault(opinion, exam, versions_back=back):
                left_out[fault] += 1
            else:
                sound.append(opinion)
        heard = consistent(sound, left_out)
        lengths = prompt_lengths([one.prompt.messages for one in heard], bench, name="kto-lengths")
        most = self._config.training.max_tokens
        sized = [(one, length) for one, length in zip(heard, lengths, strict=True) if length]
        fitting = [one for one, length in sized if length < most]
        left_out[WHY_REFUSED] += len(heard) - len(sized)
        left_out["longer than training.max_tokens"] += len(sized) - len(fitting)
        return shared_out(
            fitting,
            lambda one: one.prompt.asked_by,
            share=self._config.prompts_per_user,
            seed=self._config.seed,
            left_out=left_out,
        )

    def _too_few(self, liked: int, disliked: int) -> str | None:
        least, of_each = self._config.min_prompts, self._config.kto.least_of_each
        if liked + disliked < least:
            return (
                f"{liked + disliked} opinions can be learnt from, and {least} are needed; collect "
                "more, or lower min_prompts."
            )
        for count, name in ((liked, "liked"), (disliked, "disliked")):
            if count < of_each:
                return (
                    f"{count} replies are {name}, and {of_each} of each kind are needed; collect "
                    "more, or lower kto.least_of_each."
                )
        return None


class _Course:
    """The passes over one set of opinions."""

    def __init__(
        self,
        config: KtoConfig,
        beginning: Beginning,
        bench: Workbench,
        opinions: Sequence[Opinion],
        balance: Balance,
    ) -> None:
        self._config = config
        self._beginning = beginning
        self._bench = bench
        self._opinions = opinions
        self._balance = balance
        self._kl: list[JSON] = []
        self._not_measured: str | None = None
        self.stopped = ""

    def run(self) -> Weights | None:
        """The weights of the last pass that was kept; None if none was."""
        weights: Weights | None = None
        for number in range(self._config.kto.passes):
            if not self._bench.has_budget():
                self.stopped = "the budget is used up"
                return weights
            with self._bench.stage("training"):
                trained = self._bench.train(
                    self._stage(number),
                    start=weights or self._beginning.start,
                    teacher=self._beginning.start,
                )
            with self._bench.stage("probe"):
                kl = self._measured_kl(trained, number)
            if kl is None:
                self.stopped = f"the KL could not be measured ({self._not_measured})"
                return trained
            self._kl.append(kl)
            if kl > self._config.kto.most_kl:
                self.stopped = (
                    f"pass {number + 1} moved the model by {kl} nats per token, more than "
                    f"kto.most_kl ({self._config.kto.most_kl}); lower training.learning_rate"
                )
                return weights
            weights = trained
        self.stopped = "all passes are done"
        return weights

    def report(self) -> dict[str, JSON]:
        """How far the passes went."""
        return {"kl": self._kl, "stopped": self.stopped}

    def _stage(self, number: int) -> Stage:
        config = self._config
        return Stage(
            lora=config.lora,
            training=config.training,
            seed=config.seed + number,
            replies=tuple(
                GivenReply(opinion.prompt.messages, opinion.reply, is_liked=opinion.is_liked)
                for opinion in self._opinions
            ),
            losses=LossSpec(
                kto_beta=config.kto.beta,
                kto_liked_weight=self._balance.liked,
                kto_disliked_weight=self._balance.disliked,
            ),
            goes_on=number > 0,
        )

    def _measured_kl(self, weights: Weights, number: int) -> float | None:
        """Mean KL(start || policy) per token of the start's replies, in nats; None: not measured."""

        def measure() -> JSON:
            try:
                replies = self._start_replies()
                with self._bench.serving([weights]) as (policy,):
                    places = self._config.kto.probe_places
                    found = divergences_of(replies, _measuring(policy), places)
            except NotScored as refusal:
                return {"not_measured": str(refusal)}
            values = [value for reply in found for value in reply]
            if not values:
                return {"not_measured": "the start says nothing"}
            return {"kl": round(fmean(values), 6)}

        kept = self._bench.once(self._beginning.name(f"kto-kl-{number}"), measure)
        assert isinstance(kept, dict)
        if (kl := kept.get("kl")) is not None:
            return float(str(kl))
        self._not_measured = str(kept["not_measured"])
        return None

    def _start_replies(self) -> list[Reply]:
        """What the start says greedily to the first prompts, with what was likeliest beside it."""
        asked = {key_of(one.prompt.messages): one.prompt.messages for one in self._opinions}
        spec = self._config.kto

        def ask() -> JSON:
            found = _measuring(self._beginning.student(self._bench)).replies(
                list(asked.values())[: spec.probe_prompts],
                SamplingParams(max_tokens=spec.probe_tokens, may_be_refused=True),
            )
            rows: JSON = _REPLIES.dump_python(found, mode="json")
            return rows

        return _REPLIES.validate_python(
            self._bench.once(self._beginning.name("kto-start-replies"), ask)
        )


def balanced(liked: int, disliked: int) -> Balance:
    """Weights of which the smaller is 1, so that liked * weight over disliked * weight is in [1, 4/3].

    Nothing is changed where the numbers themselves are.
    """
    ratio = liked / disliked
    if ratio < 1.0:
        return Balance(1.0 / ratio, 1.0)
    return Balance(1.0, max(1.0, ratio / _MOST_LIKED_WEIGHT))


def thumb_fault(opinion: Opinion, exam: frozenset[str], *, versions_back: int) -> str | None:
    """Why nothing is learnt from an opinion; `exam` are the held-out prompts as `plain` has them."""
    if opinion.is_liked is None:
        return "no thumb given"
    if not opinion.reply.strip():
        return "the reply is empty"
    if opinion.versions_ago > versions_back:
        return "of too old a version"
    return fault_of(opinion.prompt, exam)


def consistent(opinions: Sequence[Opinion], left_out: Counter[str]) -> list[Opinion]:
    """What each user thinks of each reply, once; of those that they both like and dislike nothing."""
    by_reply: dict[tuple[str, str, str | None], list[Opinion]] = {}
    for opinion in opinions:
        key = (key_of(opinion.prompt.messages), plain(opinion.reply), opinion.prompt.asked_by)
        by_reply.setdefault(key, []).append(opinion)
    kept: list[Opinion] = []
    for of_reply in by_reply.values():
        if len({opinion.is_liked for opinion in of_reply}) > 1:
            left_out["the user contradicts themselves"] += len(of_reply)
            continue
        kept.append(of_reply[0])
        left_out[REPEATED] += len(of_reply) - 1
    return kept


def _measuring(sampler: RolloutSampler) -> MeasuringSampler:
    if not isinstance(sampler, MeasuringSampler):
        raise NotScored("the sampler tells no log-probabilities")
    return sampler
