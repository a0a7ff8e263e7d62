"""The least that each method can learn: a small config, an assignment, and what the engine says."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.methods import AcceptedSelfEdit, Assignment, Method, build_method
from adapters.methods.edit_prompts import edit_prompt
from adapters.spec import METHODS, EditPrompt
from adapters.types import (
    ChatMessage,
    Example,
    ItemKind,
    Opinion,
    Prompt,
    SourceDocument,
    Task,
    build_item,
)
from examples.write_your_own_method import BestOf, BestOfConfig
from tests.support.training_bench import Answering

TEXTS = {
    "quill": "The Harbour of Quill was dug in 1874 by the engineer Ada Penhallow. It has 12 cranes.",
    "orm": "The Tower of Orm was built in 1611. It has 90 steps, and its keeper is Odile Brandt.",
}
DOCUMENTS = tuple(SourceDocument(name, name.title(), text, (text,)) for name, text in TEXTS.items())
QUIZ = tuple(
    build_item(ItemKind.MODEL, name, prompt=prompt, answers=(answer,))
    for name, prompt, answer in (
        ("quill", "When was the Harbour of Quill dug?", "1874"),
        ("orm", "Who keeps the Tower of Orm?", "Odile Brandt"),
    )
)
_SHAPE = {"rank": 2, "alpha": 4}
_TRAINING = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "precision": "float32"}
_LEAST = {"lora": _SHAPE, "training": _TRAINING, "replay": {"prompts": 2, "prompts_per_epoch": 1}}
_PROMPTS: dict[str, Any] = {"lora": _SHAPE, "training": _TRAINING, "min_prompts": 3}
_ROLLOUTS = {"prompts_per_step": 3, "group": 4, "steps": 2, "max_new_tokens": 24}
_SUM = re.compile(r"(\d+) \+ (\d+)")


@dataclass(frozen=True)
class Case:
    """One method in the battery."""

    fields: dict[str, Any]
    """What its config has otherwise than by default, so that it is cheap."""
    assignment: Assignment
    answering: Answering
    held_out: str
    """A prompt among what it is given, which it must leave alone when the exam asks it."""
    trained_answering: Answering | None = None
    """What the engine says with what was trained; None: the same."""
    takes_champion: bool = False
    """Whether it learns nothing where the base serves."""
    build: Callable[[dict[str, Any]], Method] | None = None
    """Makes the method of its config's fields, where the server does not know it."""
    least: Assignment | None = field(default_factory=Assignment)
    """Material too small to learn from; None where any will do, and nothing never reaches it."""

    def method(self, name: str) -> Method:
        """With the case's config."""
        if self.build is not None:
            return self.build(self.fields)
        return build_method(METHODS[name].model_validate(self.fields))


def sum_prompt(one: int, other: int, **fields: Any) -> Prompt:
    text = f"What is {one} + {other}? Answer with just the number."
    return Prompt(f"{one}-{other}", ({"role": "user", "content": text},), asked_by=None, **fields)


def sums(**fields: Any) -> tuple[Prompt, ...]:
    return tuple(
        sum_prompt(one, other, answers=(str(one + other),), **fields)
        for one, other in ((3, 5), (2, 7), (4, 4), (6, 1), (5, 9), (8, 3))
    )


def adding(conversation: Sequence[ChatMessage], draw: int) -> str:
    """Right two times in three; of a text it is shown, all; else a word."""
    text = conversation[-1]["content"]
    if "Text: " in text:
        return text.partition("Text: ")[2].partition("\n\n")[0]
    asked = [match for each in conversation for match in _SUM.findall(each["content"])]
    if not asked:
        return "Yes."
    right = sum(map(int, asked[0]))
    return str(right if draw % 3 else right + 1)


def forming(conversation: Sequence[ChatMessage], draw: int) -> str:
    """The right sum, in the form that is asked for or without it."""
    asked = [match for each in conversation for match in _SUM.findall(each["content"])]
    if not asked:
        return "Yes."
    right = sum(map(int, asked[0]))
    return json.dumps({"answer": right}) if draw % 2 else str(right)


def revising(conversation: Sequence[ChatMessage], draw: int) -> str:
    """Wrong on every other sum at first; right as soon as it is asked to look again."""
    asked = [match for each in conversation for match in _SUM.findall(each["content"])]
    if not asked:
        return "Yes."
    right = sum(map(int, asked[0]))
    is_first = len(conversation) == 1 and conversation[0]["content"].startswith("What is ")
    return str(right + 1) if is_first and (right + draw) % 2 else str(right)


_CORRECTIONS = tuple(
    Opinion(prompt, "I do not know.", "base", correction=f"It is {prompt.answers[0]}.")
    for prompt in sums()
)
_THUMBS = tuple(
    Opinion(prompt, prompt.answers[0] if number % 2 else "No.", "base", is_liked=bool(number % 2))
    for number, prompt in enumerate(sums())
)


def _accepted() -> tuple[AcceptedSelfEdit, ...]:
    return tuple(
        AcceptedSelfEdit(
            each.id,
            edit_prompt(EditPrompt.REWRITE, title=each.title, passage=each.text),
            f"Said anew: {each.text}",
            0.5,
            0.0,
        )
        for each in DOCUMENTS
    )


_WORDS = (("red apple", "fruit"), ("carrot", "root"), ("pear", "fruit"), ("turnip", "root"))
_TASK = Task(
    "tsk",
    "kinds",
    "Fruit or root?",
    tuple(Example(*each) for each in _WORDS),
    (Example("plum", "fruit"),),
)


def labelling(conversation: Sequence[ChatMessage], draw: int) -> str:
    """Knows every word of the task."""
    asked = re.findall(r"Input:\n(.*?)\nOutput:", conversation[-1]["content"], re.S)
    return dict(_WORDS).get(asked[-1], "fruit") if asked else "Yes."


_SUMS = Assignment(prompts=sums())
_FIRST_SUM = sums()[0].messages[0]["content"]
_ONE_SUM = Assignment(prompts=sums()[:1])
_LEARNT = Assignment(documents=DOCUMENTS, new_documents=frozenset(TEXTS), quiz=QUIZ)

CASES: dict[str, Case] = {
    "seal": Case(_LEAST, _LEARNT, adding, QUIZ[0].prompt, least=None),
    "seal-editor": Case(
        _LEAST | {"min_edits": 2, "editor_exam": {"held_out_share": 0.0}},
        Assignment(documents=DOCUMENTS, quiz=QUIZ, accepted=_accepted()),
        adding,
        "When was the Tower of Orm built?",
    ),
    "distill": Case(
        _LEAST | {"distill": {"questions_per_document": 4}},
        _LEARNT,
        adding,
        QUIZ[0].prompt,
        least=None,
    ),
    "heal": Case(
        _LEAST | {"heal": {"prompts": 3, "replies_per_prompt": 1}},
        Assignment(documents=DOCUMENTS, quiz=QUIZ),
        adding,
        "Name a colour.",
        takes_champion=True,
    ),
    "seal-fewshot": Case(
        _LEAST | {"candidates": 1, "left_out": 1, "most_examples": 4},
        Assignment(tasks=(_TASK,)),
        adding,
        "Name a colour.",
        trained_answering=labelling,
        least=None,
    ),
    "ttrl": Case(
        _PROMPTS | {"rollouts": _ROLLOUTS},
        _SUMS,
        adding,
        _FIRST_SUM,
        least=_ONE_SUM,
    ),
    "grpo": Case(
        _PROMPTS | {"rollouts": _ROLLOUTS},
        _SUMS,
        adding,
        _FIRST_SUM,
        least=_ONE_SUM,
    ),
    "sept": Case(
        _PROMPTS | {"rollouts": _ROLLOUTS | {"group": 1, "temperature": 0.9}},
        _SUMS,
        adding,
        _FIRST_SUM,
        least=_ONE_SUM,
    ),
    "specs": Case(
        _PROMPTS
        | {
            "rollouts": _ROLLOUTS,
            "contract": {
                "type": "json-schema",
                "json_schema": {"type": "object", "required": ["answer"]},
            },
        },
        _SUMS,
        forming,
        _FIRST_SUM,
        least=_ONE_SUM,
    ),
    "sd-zero": Case(
        _PROMPTS | {"rollouts": _ROLLOUTS | {"group": 1}},
        _SUMS,
        revising,
        _FIRST_SUM,
        least=_ONE_SUM,
    ),
    "corrections": Case(
        _PROMPTS,
        Assignment(opinions=_CORRECTIONS),
        adding,
        _FIRST_SUM,
        least=Assignment(opinions=_CORRECTIONS[:1]),
    ),
    "examples/write_your_own_method.py": Case(
        _PROMPTS,
        _SUMS,
        adding,
        _FIRST_SUM,
        least=_ONE_SUM,
        build=lambda fields: BestOf(BestOfConfig.model_validate(fields)),
    ),
    "kto": Case(
        _PROMPTS | {"kto": {"least_of_each": 2, "passes": 1}},
        Assignment(opinions=_THUMBS),
        adding,
        _FIRST_SUM,
        least=Assignment(opinions=_THUMBS[:1]),
    ),
}
"""Every method of `adapters.spec.METHODS`, and that of the example; a new one adds its row."""
