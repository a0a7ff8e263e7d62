"""Replay: everyday prompts that the base model answers itself, mixed into training.

What the model could do before is kept by rehearsing it. The answers are the base's own, right or
wrong: the aim is no change, not improvement.
"""

from collections.abc import Sequence

from adapters.methods.held_out import HeldOut
from adapters.sampling import Sampler
from adapters.spec import ReplaySpec
from adapters.types import EditKind, ProgressCallback, SamplingParams, SelfEdit

PROMPTS = (
    "What is the capital of Italy?",
    "Who was Albert Einstein?",
    "What is the opposite of cold?",
    "How many days are in a year?",
    "Name three fruits.",
    "What is 5 + 2?",
    "Who painted the Sistine Chapel?",
    "Which planet is the largest?",
    "What is the plural of dog?",
    "What do plants need to grow?",
    "Write a short sentence about the sea.",
    "What is the capital of Spain?",
    "Answer with yes or no: Is snow cold?",
    "Who wrote Hamlet?",
    "How many minutes are in an hour?",
    "What colour is grass?",
    "Repeat this word: garden",
    "Which language do people speak in Brazil?",
    "What is the past tense of eat?",
    "Who was the first person on the Moon?",
    "What is 4 times 2?",
    "How many wheels does a bicycle have?",
    "Say hello in Spanish.",
    "On which continent is Kenya?",
    "What is the opposite of fast?",
    "What gas do people breathe out?",
    "Answer with one word: What animal barks?",
    "What is the capital of Russia?",
    "What do bees make?",
    "What is 9 minus 4?",
    "Who discovered gravity?",
    "How many months are in a year?",
    "What is the chemical symbol for gold?",
    "Name one season of the year.",
    "What is the opposite of open?",
    "Who invented the telephone?",
    "Which ocean lies between Europe and America?",
    "What is the plural of foot?",
    "How many legs does a spider have?",
    "What is the boiling point of water?",
    "Choose one of the two: cat or dog.",
    "What is the tallest mountain on Earth?",
    "Answer with yes or no: Can fish fly?",
    "What is the capital of China?",
    "Who was the first president of the United States?",
    "List two animals that live in the sea.",
    "What do you call a person who bakes bread?",
    "How do I make a cup of tea?",
    "What is half of 10?",
    "What is the currency of the United States?",
    "Which season comes after winter?",
    "Who composed the Moonlight Sonata?",
    "What is the opposite of left?",
    "How many letters are in the alphabet?",
    "Give me a tip for sleeping better.",
    "What is the freezing point of water?",
    "Which metal is liquid at room temperature?",
    "What is 6 + 6?",
    "Who wrote Don Quixote?",
    "Explain what a computer is.",
    "What colour is a ripe banana?",
    "What is the capital of India?",
    "How many sides does a square have?",
    "Which organ pumps blood through the body?",
)
"""Short and everyday, in the forms people ask in; none stands in our general suite."""


def allowed_prompts(exam: HeldOut) -> list[str]:
    """The prompts that the exam does not ask, in their order."""
    return [prompt for prompt in PROMPTS if not exam.covers(prompt)]


def replay_edits(
    sampler: Sampler,
    spec: ReplaySpec,
    exam: HeldOut,
    *,
    on_progress: ProgressCallback | None = None,
) -> list[SelfEdit]:
    """The first `spec.prompts` prompts that no exam asks, with the sampler's greedy answers; empty
    answers dropped. One that ran into the length limit loses its last, unfinished sentence.

    Raises:
        SamplingError: the engine failed.
    """
    prompts = allowed_prompts(exam)[: spec.prompts]
    replies = _ask(prompts, sampler, spec, on_progress) if prompts else []
    return [
        SelfEdit(EditKind.REPLAY, None, prompt, text, "model")
        for prompt, reply in zip(prompts, replies, strict=True)
        if (text := _whole_sentences(reply))
    ]


def _ask(
    prompts: Sequence[str],
    sampler: Sampler,
    spec: ReplaySpec,
    on_progress: ProgressCallback | None,
) -> list[str]:
    return sampler.chat(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        SamplingParams(max_tokens=spec.max_new_tokens),
        on_progress=on_progress,
    )


def _whole_sentences(reply: str) -> str:
    """The reply up to its last full stop, or all of it when it has none."""
    text = reply.strip()
    end = max(text.rfind(mark) for mark in ".!?")
    return text[: end + 1] if end > 0 else text
