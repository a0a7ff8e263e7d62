"""From what is wished to what is done: method, config and material of a run that may be queued.

The same for a policy, for an order by hand, and for a dry run, which changes nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from adapters.redaction import Redactor, redact
from adapters.spec import (
    METHODS,
    VERIFIER,
    AnswerSpec,
    AnswerVerifier,
    BudgetSpec,
    MethodConfig,
    PromptSettings,
    SdZeroConfig,
    SeptConfig,
    SpecsConfig,
    UnitTestsVerifier,
)
from adapters.spec.feedback import CorrectionsConfig, KtoConfig
from server.core.errors import InvalidRequest
from server.core.settings import LearningSettings
from server.db import Adapter
from server.services import (
    auto,
    earlier_runs,
    methods,
    promotion,
    prompt_material,
    registry,
    reply_forms,
    runs,
)
from server.services.auto import Facts, Tried
from server.services.policy_rules import MaterialSpec
from server.services.prompt_selection import Selection

AUTO = "auto"
FEEDBACK_METHODS = frozenset({"corrections", "kto"})
PROMPT_METHODS = frozenset(
    name for name, config in METHODS.items() if issubclass(config, PromptSettings)
)
"""Those that learn from prompts or from what was said of replies; all others learn documents."""

_TAUGHT_PROMPTS = ("specs", "sd-zero", "ttrl", "sept")
"""Those of them that `auto` may choose."""

_TUNED = re.compile(r"instruct|chat|(?<![a-z])it(?![a-z])|assistant", re.IGNORECASE)
_YIELDING = ("verifier", "prompt_exam")
"""What `auto` finds that yields to the settings, too."""
_LOOKED_AT = 200
"""Logged replies whose form is looked at."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants learnt."""

    method: str | None = None
    """A method's name, or ``auto``; None: the settings' for documents, else ``auto``."""
    material: MaterialSpec | None = None
    """None: what the method learns from."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What is to differ from the settings' config; with ``auto``, by the method's name."""
    budget: BudgetSpec = field(default_factory=BudgetSpec)


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done."""

    config: MethodConfig | None
    """None: there would be no run, and the reason says why."""
    material: MaterialSpec
    reason: dict[str, Any]
    """``why``, and by method why none of the others."""
    selection: Selection | None = None
    """What would be taken; None: documents."""

    @property
    def generations(self) -> int | None:
        """Replies that the learning would ask for at most; None where that is not known before."""
        if not isinstance(self.config, PromptSettings) or self.selection is None:
            return None
        return self.config.most_replies(_usable_of(self.config, self.selection))


def completed(wish: Wish, default: str) -> tuple[str, MaterialSpec]:
    """Method and material of a wish that left some of it out.

    Raises:
        InvalidRequest: there is no such method, or it does not learn from this.
    """
    method, material = wish.method, wish.material
    is_named = material is not None and "kind" in material.model_fields_set
    if method is None:
        is_tagged = material is not None and material.tag is not None
        is_of_documents = (
            material.kind == "documents" if material is not None and is_named else not is_tagged
        )
        method = default if is_of_documents else AUTO
    if method != AUTO and method not in METHODS:
        known = ", ".join((AUTO, *METHODS))
        raise InvalidRequest(f"There is no method {method!r}; choose one of {known}.", "method")
    kind = kind_of(method)
    if material is None:
        return method, MaterialSpec(kind=kind or "all")
    if not is_named:
        return method, material.model_copy(update={"kind": kind or "all"})
    if kind is not None and material.kind != kind:
        raise InvalidRequest(
            f"{method} learns from {kind}, not from {material.kind}; set material.kind to "
            f'"{kind}", or choose another method: GET /api/v1/methods lists them.',
            "material.kind",
        )
    return method, material


def kind_of(method: str) -> str | None:
    """The kind of material that a method learns from; None: ``auto``, which chooses."""
    if method == AUTO:
        return None
    if method in FEEDBACK_METHODS:
        return "feedback"
    return "prompts" if method in PROMPT_METHODS else "documents"


def check(settings: LearningSettings, wish: Wish, *, max_rank: int | None = None) -> None:
    """Refuse what could never be done.

    Raises:
        InvalidRequest: what is wrong, in which field, and what helps.
    """
    method, _ = completed(wish, settings.chosen.type)
    if method in (runs.TASK_METHOD, runs.EDITOR_METHOD, runs.HEAL):
        raise InvalidRequest(
            f"{method} is not for policies: it learns a task, trains an editor, or heals; "
            "choose another method.",
            "method",
        )
    if method != AUTO:
        _config(settings, method, wish, {}, max_rank)
        return
    _check_by_method(wish.config)
    for name in wish.config:
        _config(settings, name, wish, {}, max_rank)


def make(
    session: Session,
    settings: LearningSettings,
    adapter: Adapter,
    wish: Wish,
    *,
    new_documents: int = 0,
    max_rank: int | None = None,
    redactor: Redactor = redact,
) -> Plan:
    """What a run would learn now, and how; changes nothing.

    Args:
        new_documents: how many documents wait, for ``auto``.

    Raises:
        InvalidRequest: see :func:`completed`, or a value that the method does not take.
    """
    method, material = completed(wish, settings.chosen.type)
    if method != AUTO:
        config = _config(settings, method, wish, {}, max_rank)
        if kind_of(method) == "documents":
            return Plan(config, material, {"why": "It was named.", "rejected": {}})
        found = prompt_material.gather(session, adapter, material, config, redactor=redactor)
        return _named(config, material, found)
    _check_by_method(wish.config)
    return _chosen(session, settings, adapter, wish, material, new_documents, max_rank, redactor)


def too_few(config: MethodConfig, found: Selection) -> str | None:
    """Why a run on this could come to nothing but "no update"; None: it may come to something."""
    usable = _usable_of(config, found)
    if not isinstance(config, PromptSettings) or usable >= config.min_prompts:
        return None
    return f"{usable} prompts or opinions to learn from, and {config.type} asks for {config.min_prompts}."


def _usable_of(config: MethodConfig, found: Selection) -> int:
    """How many prompts, or opinions, a method may learn from."""
    is_of_opinions = isinstance(config, CorrectionsConfig | KtoConfig)
    return len(found.opinions if is_of_opinions else found.train)


def _check_by_method(config: Mapping[str, Any]) -> None:
    """Raises InvalidRequest where the config of ``auto`` is not made of one object per method."""
    for name, overrides in config.items():
        if name not in METHODS or not isinstance(overrides, Mapping):
            raise InvalidRequest(
                f"config.{name}: with the method auto, config holds one object for each method that "
                'is to differ, such as {"ttrl": {"rollouts": {"group": 32}}}.',
                f"config.{name}",
            )


def _named(config: MethodConfig, material: MaterialSpec, found: Selection) -> Plan:
    lacking = too_few(config, found)
    if lacking is not None:
        return Plan(None, material, {"why": lacking, "rejected": {config.type: lacking}}, found)
    return Plan(config, material, {"why": "It was named.", "rejected": {}}, found)


def _chosen(
    session: Session,
    settings: LearningSettings,
    adapter: Adapter,
    wish: Wish,
    material: MaterialSpec,
    new_documents: int,
    max_rank: int | None,
    redactor: Redactor,
) -> Plan:
    """What ``auto`` makes of it."""

    def gathered(kind: str) -> Selection:
        if material.kind not in (kind, "all"):
            return Selection((), (), (), {})
        chosen = material.model_copy(update={"kind": kind})
        some = _config(settings, "kto" if kind == "feedback" else "ttrl", wish, {}, max_rank)
        return prompt_material.gather(session, adapter, chosen, some, redactor=redactor)

    prompts, judged = gathered("prompts"), gathered("feedback")
    is_open = material.kind in ("documents", "all") and material.tag is None  # they have no tags
    documents = new_documents if is_open else 0
    facts = facts_of(
        session, settings, adapter, wish, prompts, judged, documents, max_rank, redactor
    )
    choice = auto.choose(facts, settings.auto)
    reason = choice.as_json()
    kind = kind_of(choice.method) if choice.method is not None else None
    found = {"prompts": prompts, "feedback": judged}.get(kind or material.kind)
    if choice.method is None or kind is None:
        return Plan(None, material, reason, found or prompts)
    config = _config(settings, choice.method, wish, choice.config, max_rank)
    settled = material.model_copy(update={"kind": kind})
    if found is not None and (lacking := too_few(config, found)) is not None:
        return Plan(None, settled, {**reason, "why": lacking}, found)
    return Plan(config, settled, reason, found)


def facts_of(
    session: Session,
    settings: LearningSettings,
    adapter: Adapter,
    wish: Wish,
    prompts: Selection,
    judged: Selection,
    documents: int,
    max_rank: int | None,
    redactor: Redactor = redact,
) -> Facts:
    """What ``auto`` chooses by."""
    specs = _config(settings, "specs", wish, {}, max_rank)
    sd_zero = _config(settings, "sd-zero", wish, {}, max_rank)
    assert isinstance(specs, SpecsConfig)
    assert isinstance(sd_zero, SdZeroConfig)
    has_contract = specs.contract != SpecsConfig().contract
    needs_answers = isinstance(sd_zero.verifier, AnswerVerifier | UnitTestsVerifier)
    # What another version said, a lesson may have mended since.
    champion = promotion.champion(session, adapter)
    serving = registry.version_name(adapter.name, champion.number if champion else None)
    said = [each.reply for each in prompts.train if each.reply and each.version == serving]
    replies = said[:_LOOKED_AT]
    opinions = [each.opinion for each in judged.opinions if each.opinion is not None]
    liked_at = {each.prompt.id: each.liked_at for each in judged.opinions}
    corrected_at = {each.prompt.id: each.corrected_at for each in judged.opinions}
    return Facts(
        documents=documents,
        document_method=settings.chosen.type,
        prompts=len(prompts.train),
        answered=sum(bool(each.prompt.answers) for each in prompts.train),
        answers_are=reply_forms.kind_of_answers(
            [answer for each in prompts.train for answer in each.prompt.answers]
        ),
        tested=sum(bool(each.prompt.tests) for each in prompts.train),
        verifier=None if needs_answers else sd_zero.verifier.type,
        thumbs_up=sum(each.is_liked is True for each in opinions),
        thumbs_down=sum(each.is_liked is False for each in opinions),
        thumbs_learnt=_learnt(session, adapter, "kto", liked_at),
        corrections=sum(each.correction is not None for each in opinions),
        corrections_learnt=_learnt(session, adapter, "corrections", corrected_at),
        serving=serving,
        replies=len(replies),
        answer_kinds=reply_forms.answer_kinds(replies) if replies else {},
        has_contract=has_contract,
        well_formed=reply_forms.well_formed(replies, specs.contract) if has_contract else None,
        is_tuned=_TUNED.search(adapter.base_model) is not None,
        tried=_tried(
            session,
            adapter,
            [_config(settings, name, wish, {}, max_rank) for name in _TAUGHT_PROMPTS],
            prompts,
            redactor,
        ),
    )


def _tried(
    session: Session,
    adapter: Adapter,
    configs: Sequence[MethodConfig],
    prompts: Selection,
    redactor: Redactor,
) -> dict[str, Tried]:
    """Which methods would learn in vain what they have learnt in vain before, if little is new."""
    found: dict[str, Tried] = {}
    for config in configs if prompts.train else ():
        last = earlier_runs.tried_in_vain(session, adapter, config, prompts.train, redactor)
        if last is not None:
            found[config.type] = last
    return found


def _learnt(
    session: Session, adapter: Adapter, method: str, said_at: Mapping[str, datetime | None]
) -> int:
    """Of how many replies a run of the method has had what was said, at a moment each, of them."""
    taken_at = earlier_runs.judgements_learnt(session, adapter, method, said_at)
    return sum(
        moment is not None and key in taken_at and moment <= taken_at[key]
        for key, moment in said_at.items()
    )


def _config(
    settings: LearningSettings,
    method: str,
    wish: Wish,
    found: Mapping[str, Any],
    max_rank: int | None,
) -> MethodConfig:
    """The settings' config with what the wish changes; what was found yields to what was said."""
    is_auto = completed(wish, settings.chosen.type)[0] == AUTO
    given: Mapping[str, Any] = wish.config.get(method, {}) if is_auto else wish.config
    budget = wish.budget.model_dump(mode="json", exclude_none=True)
    overrides = {name: found[name] for name in found if name not in _YIELDING} | dict(given)
    overrides = methods.within(budget, overrides)
    config = methods.config_of(settings, method, overrides, max_rank=max_rank)
    return _with_found(config, found)


def _with_found(config: MethodConfig, found: Mapping[str, Any]) -> MethodConfig:
    """The config with what was found of how answers are read, where nothing was said of that."""
    verifier, exam = found.get("verifier"), found.get("prompt_exam")
    if isinstance(config, SdZeroConfig) and verifier and config.verifier == AnswerVerifier():
        return config.model_copy(update={"verifier": VERIFIER.validate_python(verifier)})
    if isinstance(config, SeptConfig) and exam and config.prompt_exam.answer == AnswerSpec():
        answer = AnswerSpec.model_validate(exam["answer"])
        asked = config.prompt_exam.model_copy(update={"answer": answer})
        return config.model_copy(update={"prompt_exam": asked})
    return config
