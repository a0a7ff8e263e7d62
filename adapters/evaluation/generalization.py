"""Generalization Factor: one number for a gain on the task that is a gain elsewhere, too.

Chen et al., SPECS, arXiv 2510.25801, eq. for Γ(n): the F-beta score of the gain in distribution
(held-out prompts of the kind that was learnt) and out of it (another kind).
"""

import math
from dataclasses import dataclass

BETA = 2.0
"""Of the paper: the gain out of distribution counts more."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares of right replies, in 0..1, of one version."""

    in_distribution: float
    out_of_distribution: float


def generalization_factor(start: Scores, now: Scores, *, beta: float = BETA) -> float | None:
    """(1 + beta²) G_in G_out / (beta² G_in + G_out) of the gains over the start; in 0..1.

    None unless both gains are above 0: of a gain and a loss, or of two losses, the formula makes
    numbers that mean nothing, the product of two losses being a gain.

    Raises:
        ValueError: a score or beta is not finite, or beta is not above 0.
    """
    if not math.isfinite(beta) or beta <= 0:
        raise ValueError(f"beta must be finite and above 0, not {beta}")
    inner = now.in_distribution - start.in_distribution
    outer = now.out_of_distribution - start.out_of_distribution
    if not (math.isfinite(inner) and math.isfinite(outer)):
        raise ValueError("a score is not finite")
    if inner <= 0 or outer <= 0:
        return None
    # Divided through by the larger gain: nothing is too small or too large for a float.
    if inner >= outer:
        return (1 + beta**2) * outer / (beta**2 + outer / inner)
    return (1 + beta**2) * inner / (beta**2 * (inner / outer) + 1)
