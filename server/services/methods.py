"""Which methods there are, and with what config a run uses one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from adapters.spec import METHODS, FewShotConfig, MethodConfig, SealEditorConfig, editor_config
from server.core.errors import InvalidRequest, UnknownField
from server.core.settings import LearningSettings

_REMEDY = "GET /api/v1/methods shows what each method takes."


@dataclass(frozen=True, slots=True)
class Description:
    """A method as a user chooses it."""

    name: str
    purpose: str
    """In one line."""
    is_default: bool
    config: dict[str, Any]
    """What a run gets that names nothing else."""
    json_schema: dict[str, Any]


def describe(learning: LearningSettings) -> list[Description]:
    """Every method with the settings' config of it."""
    return [
        Description(
            name=name,
            purpose=(kind.__doc__ or "").partition("\n")[0],
            is_default=name == learning.chosen.type,
            config=_set(learning, name).model_dump(mode="json"),
            json_schema=kind.model_json_schema(),
        )
        for name, kind in METHODS.items()
    ]


def config_of(
    learning: LearningSettings,
    name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    max_rank: int | None = None,
) -> MethodConfig:
    """The settings' config of a method, the chosen one's when none is named, with some changed.

    ``overrides`` is as nested as the config, and holds only what is to differ.

    Raises:
        InvalidRequest: no such method, or a value that it does not take; ``param`` names the field.
    """
    if name is not None and name not in METHODS:
        known = ", ".join(METHODS)
        raise InvalidRequest(f"There is no method {name!r}; choose one of {known}.", "method")
    config = learning.chosen if name is None else _set(learning, name)
    if overrides:
        merged = _merged(config.model_dump(mode="json"), overrides)
        try:
            config = type(config).model_validate(merged)
        except ValidationError as error:
            raise _refused(error) from None
    if max_rank is not None:
        check_ranks(config, max_rank)
    return config


def within(budget: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides with a budget, which yields to what they say of one.

    What is no budget there stays as it is, for :func:`config_of` to refuse.
    """
    said = overrides.get("budget", {})
    if not budget or not isinstance(said, Mapping):
        return dict(overrides)
    return {**overrides, "budget": {**budget, **said}}


def check_ranks(config: MethodConfig, max_rank: int) -> None:
    """Raises InvalidRequest where a run would train what the engine does not take."""
    ranks = {"config.lora.rank": config.lora.rank}
    if isinstance(config, SealEditorConfig):  # its exam serves what the edits teach
        ranks["config.inner.lora.rank"] = config.inner.lora.rank
    for field, rank in ranks.items():
        if rank > max_rank:
            raise InvalidRequest(
                f"{field} is {rank}, and the engine takes at most {max_rank}; "
                "lower it, or raise EVERLEARN_ENGINE__MAX_LORA_RANK.",
                field,
            )


def _set(learning: LearningSettings, name: str) -> MethodConfig:
    """What the settings say of a method."""
    if METHODS[name] is SealEditorConfig:
        return editor_config(learning.seal)
    if METHODS[name] is FewShotConfig:
        return learning.few_shot
    kept: MethodConfig = getattr(learning, name.replace("-", "_"))
    return kept


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for name, value in overrides.items():
        kept = merged.get(name)
        is_group = isinstance(kept, Mapping) and isinstance(value, Mapping)
        is_group = is_group and "type" not in value  # one of several kinds is named as a whole
        merged[name] = _merged(kept, value) if is_group else value  # type: ignore[arg-type]
    return merged


def _refused(error: ValidationError) -> InvalidRequest:
    first = error.errors()[0]
    field = ".".join(("config", *map(str, first["loc"])))
    if first["type"] == "extra_forbidden":
        return UnknownField(f"{field} is no setting of the method. {_REMEDY}", field)
    return InvalidRequest(f"{field}: {first['msg']}. {_REMEDY}", field)
