"""Which ranks talk with which, in which order."""

from __future__ import annotations


def powers(limit: int) -> list[int]:
    """1, 2, 4, ... below the limit."""
    return [2**power for power in range((limit - 1).bit_length())]


def tree(rank: int, size: int, root: int) -> tuple[int | None, dict[int, int]]:
    """A rank's parent in a binomial tree (None for the root), and its children, near to far, with their distances.

    The ranks stand in a row that begins with the root, and goes on behind the last rank with rank 0. A child and all
    that are below it stand from its distance up to twice its distance, or the end of the row.
    Raises ValueError if the root is no rank.
    """
    if not 0 <= root < size:
        raise ValueError(f"the root {root} is none of the ranks 0 to {size - 1}")
    place = (rank - root) % size
    reach = place & -place if place else size
    children = {(rank + distance) % size: distance for distance in powers(reach) if place + distance < size}
    return (rank - reach) % size if place else None, children


def partners(rank: int, size: int) -> tuple[int | None, list[int]]:
    """A rank's neighbour, if the two act as one, and the ranks with which it trades in recursive doubling.

    So many pairs of neighbours act as one, from rank 0 on, that a power of two is left. The odd one of a pair acts,
    the even one has no partners. Those who have traded with each other, directly or not, stand in a row.
    """
    actors = 2 ** (size.bit_length() - 1)
    pairs = size - actors
    is_paired = rank < 2 * pairs
    if is_paired and rank % 2 == 0:
        return rank + 1, []
    place = rank // 2 if is_paired else rank - pairs
    others = [place ^ distance for distance in powers(actors)]
    return rank - 1 if is_paired else None, [2 * other + 1 if other < pairs else other + pairs for other in others]
