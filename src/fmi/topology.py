"""Communication patterns of the collectives: which ranks exchange messages, and in which order."""

from __future__ import annotations


def powers_of_two(limit: int) -> list[int]:
    """Return 1, 2, 4, ... below the limit."""
    return [2**power for power in range((limit - 1).bit_length())]


def binomial_tree(rank: int, size: int, root: int) -> tuple[int | None, dict[int, int]]:
    """Return a rank's parent in a binomial tree (None for the root), and its children with their distances.

    Ranks are counted from the root on, and wrap around after the last rank. The subtree of a child begins at the
    child's distance from this rank and has as many ranks as that distance, or fewer at the end of the count. Children
    are ordered by distance, the nearest first.
    Raises ValueError if the root is not one of the ranks.
    """
    if not 0 <= root < size:
        raise ValueError(f"root {root} is not one of the ranks 0 to {size - 1}")
    position = (rank - root) % size
    subtree_size = position & -position if position else size
    children = {
        (rank + distance) % size: distance for distance in powers_of_two(subtree_size) if position + distance < size
    }
    return (rank - subtree_size) % size if position else None, children


def doubling_partners(rank: int, size: int) -> tuple[int | None, list[int]]:
    """Return the neighbour with which a rank acts as one, if any, and its partners in recursive doubling.

    If `size` is not a power of two, pairs of neighbours from rank 0 on act as one, as many as leave a power of two.
    The odd rank of such a pair acts for both, and the even rank has no partners. The ranks that have combined their
    operands so far are consecutive, so that operands can be combined in the order of ranks (Thakur, Rabenseifner &
    Gropp 2005, "Optimization of Collective Communication Operations in MPICH").
    """
    active = 2 ** (size.bit_length() - 1)
    pairs = size - active
    is_paired = rank < 2 * pairs
    if is_paired and rank % 2 == 0:
        return rank + 1, []
    position = rank // 2 if is_paired else rank - pairs
    others = [position ^ distance for distance in powers_of_two(active)]
    return rank - 1 if is_paired else None, [2 * other + 1 if other < pairs else other + pairs for other in others]
