"""The exam on held-out prompts: what is asked, who says that a reply is right, and the asking.

Each prompt is asked of both versions in its own conversation, once, with the same seed, at the
temperature of the exam: what users meet. Who marks the reply, the first that can:

1. the contract of the run's config, with the answer where one is known, and the config's verifier;
2. the config's verifier;
3. a user's correction;
4. the answers that came with the prompt;
5. the majority of the champion's own replies, where enough of them agree. That is no more than what
   the model believes already: it shows a skill made steadier, not one that is new, and the item says
   so. A prompt on which they do not agree, or whose replies hold no answer, is not asked.

For thumbs nobody knows a right reply to a held-out prompt, so nothing is asked to be gained there:
that a version is liked better is for the live trial to show.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from adapters.evaluation.closeness import is_close
from adapters.rewards.contracts import fault_of
from adapters.rewards.equivalence import are_equal, cluster
from adapters.rewards.extraction import extract
from adapters.rewards.same_answer import read_answer
from adapters.rewards.verifiers import Verifier
from adapters.sampling import Sampler
from adapters.spec import (
    AnswerSpec,
    AnswerVerifier,
    ContractSpec,
    CorrectionsConfig,
    GrpoConfig,
    KtoConfig,
    PromptExamSpec,
    PromptSettings,
    SdZeroConfig,
    SpecsConfig,
    TtrlConfig,
    UnitTestsVerifier,
    VerifierSpec,
)
from adapters.types import (
    Attempt,
    ExamItem,
    Grader,
    ItemKind,
    ProgressCallback,
    Prompt,
    SamplingParams,
    Verdict,
)

VerifierOf = Callable[[VerifierSpec], Verifier]
"""Makes a verifier of its spec."""

NO_TESTS = "no tests came with the prompt"
NO_ANSWER = "no reply of the champion holds an answer"
NO_MAJORITY = "the champion's replies do not agree"


def no_verifier(spec: VerifierSpec) -> Verifier:
    """For an exam whose prompts need none.

    Raises:
        ValueError: one does.
    """
    raise ValueError(f"nobody verifies by {spec.type} here")


@dataclass(frozen=True, slots=True)
class Marking:
    """How replies to the prompts of a run are marked."""

    answer: AnswerSpec
    contract: ContractSpec | None = None
    verifier: VerifierSpec | None = None
    is_by_correction: bool = False
    """Whether the prompts' answers are users' corrections."""
    must_gain: bool = True
    """Whether right replies are known, so that more of them can be asked for."""


@dataclass(frozen=True, slots=True)
class HeldPrompt:
    """A held-out prompt of the exam."""

    prompt: Prompt
    marking: Marking
    grader: Grader
    params: SamplingParams
    """How both versions are asked."""
    answers: tuple[str, ...] = ()
    is_earlier: bool = False
    """Whether it is of an earlier run, whose skill must be kept."""

    @property
    def item(self) -> ExamItem:
        """As the gate and the report see it."""
        return ExamItem(
            self.prompt.id,
            ItemKind.PROMPT,
            None,
            self.prompt.messages[-1]["content"],
            self.answers,
            self.grader,
            self.prompt.messages,
        )


@dataclass(frozen=True, slots=True)
class Chosen:
    """The prompts of an exam, and why others are not asked, by reason."""

    prompts: tuple[HeldPrompt, ...]
    left_out: Mapping[str, int]


def marking_of(config: PromptSettings) -> Marking:
    """How a method's config has replies marked."""
    answer = config.prompt_exam.answer
    match config:
        case TtrlConfig():
            return Marking(config.answer)
        case GrpoConfig() | SdZeroConfig():
            if isinstance(config.verifier, AnswerVerifier):
                answer = config.verifier.answer
            return Marking(answer, verifier=config.verifier)
        case SpecsConfig():
            if isinstance(config.verifier, AnswerVerifier):
                answer = config.verifier.answer
            return Marking(answer, contract=config.contract, verifier=config.verifier)
        case CorrectionsConfig():
            return Marking(answer, is_by_correction=True)
        case KtoConfig():
            return Marking(answer, must_gain=False)
    return Marking(answer)


def choose_prompts(
    prompts: Iterable[Prompt],
    marking: Marking,
    spec: PromptExamSpec,
    *,
    champion: Sampler,
    seed: int,
    is_earlier: bool = False,
    on_progress: ProgressCallback | None = None,
) -> Chosen:
    """At most `spec.max_items` prompts that can be marked, drawn by the hash of their ids.

    Raises:
        SamplingError: the champion could not be asked for its votes.
    """
    params = SamplingParams(spec.max_new_tokens, spec.temperature, seed=seed, may_be_refused=True)
    left_out: Counter[str] = Counter()
    known: list[HeldPrompt] = []
    open_: list[Prompt] = []
    for prompt in sorted(prompts, key=lambda each: sha256(each.id.encode()).digest()):
        if isinstance(marking.verifier, UnitTestsVerifier) and prompt.tests is None:
            left_out[NO_TESTS] += 1
        elif (grader := _grader_of(prompt, marking)) is None:
            open_.append(prompt)
        else:
            known.append(HeldPrompt(prompt, marking, grader, params, prompt.answers, is_earlier))
    chosen = known[: spec.max_items]
    wanted = open_[: spec.max_items - len(chosen)]
    votes = _votes(wanted, marking, spec, champion, params, on_progress)
    for prompt, found in zip(wanted, votes, strict=True):
        if found in (NO_ANSWER, NO_MAJORITY):
            left_out[found] += 1
        else:
            chosen.append(
                HeldPrompt(prompt, marking, Grader.MAJORITY, params, (found,), is_earlier)
            )
    if more := len(known) + len(open_) - len(known[: spec.max_items]) - len(wanted):
        left_out["more than one exam asks"] = more
    return Chosen(tuple(chosen), dict(left_out))


def sit_prompts(
    prompts: Sequence[HeldPrompt],
    sampler: Sampler,
    *,
    on_progress: ProgressCallback | None = None,
) -> list[str]:
    """One reply to each prompt, in their order.

    Raises:
        SamplingError: the engine could not answer.
    """
    replies: dict[int, str] = {}
    for params in dict.fromkeys(held.params for held in prompts):
        places = [place for place, held in enumerate(prompts) if held.params == params]
        conversations = [prompts[place].prompt.messages for place in places]
        said = sampler.chat(conversations, params, on_progress=on_progress)
        replies |= dict(zip(places, said, strict=True))
    return [replies[place] for place in range(len(prompts))]


def mark(
    prompts: Sequence[HeldPrompt], replies: Sequence[str], verifier_of: VerifierOf
) -> list[bool | None]:
    """Whether each reply is right; None where its verifier could not tell.

    Raises:
        ValueError: there are not as many replies as prompts.
    """
    verdicts = _verdicts(prompts, replies, verifier_of)
    return [
        _is_right(held, reply, verdicts.get(place))
        for place, (held, reply) in enumerate(zip(prompts, replies, strict=True))
    ]


def _grader_of(prompt: Prompt, marking: Marking) -> Grader | None:
    """Who marks replies to the prompt; None: only the champion's votes could."""
    if marking.contract is not None:
        return Grader.CONTRACT
    if marking.verifier is not None and not (
        isinstance(marking.verifier, AnswerVerifier) and not prompt.answers
    ):
        return Grader.VERIFIER
    if not prompt.answers:
        return None
    return Grader.CORRECTION if marking.is_by_correction else Grader.ANSWER


def _votes(
    prompts: Sequence[Prompt],
    marking: Marking,
    spec: PromptExamSpec,
    champion: Sampler,
    params: SamplingParams,
    on_progress: ProgressCallback | None,
) -> list[str]:
    """For each prompt the answer that most replies give, or why there is none."""
    if not prompts:
        return []
    conversations = [prompt.messages for prompt in prompts]
    first = (params.seed or 0) + 1  # the exam's own reply is no vote
    rounds = [
        champion.chat(conversations, replace(params, seed=first + vote), on_progress=on_progress)
        for vote in range(spec.votes)
    ]
    return [_majority(replies, marking.answer, spec) for replies in zip(*rounds, strict=True)]


def _majority(replies: Sequence[str], answer: AnswerSpec, spec: PromptExamSpec) -> str:
    answers = [extract(reply, answer) for reply in replies]
    groups = cluster(answers, answer)
    counts = Counter(group for group in groups if group is not None)
    if not counts:
        return NO_ANSWER
    largest, votes = counts.most_common(1)[0]
    found = answers[groups.index(largest)]
    if found is None or votes < spec.least_agreement * len(replies):
        return NO_MAJORITY
    return found


def _verdicts(
    prompts: Sequence[HeldPrompt], replies: Sequence[str], verifier_of: VerifierOf
) -> dict[int, Verdict]:
    """By place, of those that a verifier marks; each verifier is asked once for all of its own."""
    specs: list[VerifierSpec] = []
    found: dict[int, Verdict] = {}
    for held in prompts:
        if _asks_verifier(held) and held.marking.verifier not in specs:
            specs.append(held.marking.verifier)  # type: ignore[arg-type]
    for spec in specs:
        places = [
            place
            for place, held in enumerate(prompts)
            if _asks_verifier(held) and held.marking.verifier == spec
        ]
        attempts = [Attempt(prompts[place].prompt, replies[place]) for place in places]
        found |= dict(zip(places, verifier_of(spec).verify(attempts), strict=True))
    return found


def _asks_verifier(held: HeldPrompt) -> bool:
    """A contract's answers are compared here: of the part of the reply that holds them."""
    verifier = held.marking.verifier
    if verifier is None or held.grader not in (Grader.VERIFIER, Grader.CONTRACT):
        return False
    return held.grader is Grader.VERIFIER or not isinstance(verifier, AnswerVerifier)


def _is_right(held: HeldPrompt, reply: str, verdict: Verdict | None) -> bool | None:
    spec = held.marking.answer
    if held.grader is Grader.VERIFIER:
        return None if verdict is None else verdict.is_right
    if held.grader is Grader.CORRECTION:
        return any(is_close(reply, answer) for answer in held.answers)
    if held.grader is Grader.CONTRACT:
        return _keeps_contract(held, reply, verdict)
    return _equals_any(extract(reply, spec), held.answers, spec)


def _keeps_contract(held: HeldPrompt, reply: str, verdict: Verdict | None) -> bool | None:
    contract = held.marking.contract
    if contract is None or fault_of(reply, contract) is not None:
        return False
    spec = held.marking.answer
    if held.answers and not _equals_any(read_answer(reply, contract, spec), held.answers, spec):
        return False
    return True if verdict is None else verdict.is_right


def _equals_any(found: str | None, answers: Iterable[str], spec: AnswerSpec) -> bool:
    return found is not None and any(are_equal(found, answer, spec) for answer in answers)
