"""When a challenger may take the champion's place."""

from typing import Literal

from pydantic import Field

from adapters.spec.base import Settings, Share


class GateThresholds(Settings):
    """When a challenger may take the champion's place."""

    mode: Literal["margin", "non_inferiority"] = "margin"
    """How "no loss" is shown: `margin`, the net loss is within the margin and not significant;
    `non_inferiority`, the lower confidence bound of the difference is above the margin, too,
    which takes hundreds of items."""

    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)
    """Level of the one-sided exact McNemar tests, for gain and for loss."""
    power: float = Field(default=0.8, gt=0.0, lt=1.0)
    """Chance of a clear result for which the number of further items is computed."""
    min_new_items: int = Field(default=5, ge=1)
    """Fewer items on the new documents than this leave the gate undecided."""
    min_general_items: int = Field(default=10, ge=0)
    """Fewer items in the general suite than this leave the gate undecided."""
    document_margin_items: int = Field(default=1, ge=0)
    """Items that earlier documents, each and together, may always lose on balance."""
    document_margin_share: Share = 0.25
    """Part of an earlier document's items that it may lose on balance, if that is more."""
    earlier_margin_share: Share = 0.1
    """The same for all earlier documents together."""
    general_margin_share: Share = 0.1
    """Part of the general suite that may be lost on balance."""
    form_margin_share: Share = 0.05
    """Part of all replies that may turn empty or into mere repetition on balance."""
    finish_margin_share: Share = 0.1
    """Part of all replies that may newly run into the length limit on balance."""
    refusal_margin_share: Share = 0.05
    """Part of the general suite that may newly be refused on balance."""
    min_entropy_share: Share = 0.5
    """The challenger's mean token entropy on the general suite, as a part of the champion's; below
    it, its replies have collapsed."""
    min_entropy: float = Field(default=0.1, ge=0.0)
    """Nats: a champion below that is too sure already for a fall to tell anything."""
    length_change_share: float = Field(default=0.5, gt=0.0)
    """Part by which the mean length of replies to the general suite may grow or shrink."""
    kl_factor: float = Field(default=2.0, ge=1.0)
    """KL(base || challenger) per token beyond this many medians of the line's accepted exams is an
    alarm."""
    kl_least: float = Field(default=0.1, ge=0.0)
    """Nats: below it no alarm is raised, whatever the median."""
    kl_exams: int = Field(default=3, ge=1)
    """With fewer accepted exams than this there is no median to go by."""
    kl_ceiling: float = Field(default=8.0, gt=0.0)
    """Nats per token on the prompts about documents: beyond it the challenger is rejected."""
    kl_general_ceiling: float = Field(default=1.0, gt=0.0)
    """The same on the general suite, where nothing was to be learnt."""
    drift_prompts: int = Field(default=64, ge=0)
    """Prompts about documents, and of the general suite, on which the KL is measured; 0 turns it
    off."""
    drift_places: int = Field(default=4, ge=1)
    """Tokens of each of those replies at which it is measured; each takes one short request."""
    require_drift: bool = False
    """Whether an engine that can not measure the KL leaves the gate undecided."""
