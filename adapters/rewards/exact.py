"""Exact grading: for grids, labels and JSON, where nearly right is wrong."""

from collections.abc import Sequence


def is_exact(reply: str, answers: Sequence[str]) -> bool:
    """Whether the whole reply is an accepted answer, but for white space.

    Lines count as white space: a grid whose cells are all right in one line is right. An empty
    answer never matches.
    """
    said = reply.split()
    return any(said == wanted for answer in answers if (wanted := answer.split()))
