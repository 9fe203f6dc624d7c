"""Collective operations: all ranks of a group call the same functions in the same order.

`timeout` is for the whole call, in seconds; None stands for the group's. Every function raises PeerLost if a rank is
lost, DeadlinePassed if the others do not call it in time, and CollectiveMismatch if they call another function, or
this one with another root or with an array of another shape or type. The group cannot be used after any of these.
Arguments are never modified, and results are in memory of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from .collective_call import CollectiveCall, Partial
from .reduction import (
    combine,
    is_reproducible,
    prepare_operand,
    reduce_around_ring,
    reduce_by_doubling,
    unify_nans,
    unwrap_result,
)
from .topology import binomial_tree, doubling_partners, powers_of_two
from .values import Buffer, allocate_buffer, concatenate, decode, encode, split_values

if TYPE_CHECKING:
    from .group import Group

Operation = Literal["sum", "product", "min", "max"]

RING_THRESHOLD = 2**20  # bytes of an array from which on less data in more messages is faster
BARRIER, BROADCAST, SCATTER, GATHER, ALLGATHER, REDUCE, ALLREDUCE, SCAN = range(1, 9)  # kinds of tags


def barrier(group: Group, timeout: float | None = None) -> None:
    """Return when all ranks have called it."""
    call = CollectiveCall(group, BARRIER, timeout)
    steps = [((group.rank + d) % group.size, (group.rank - d) % group.size) for d in powers_of_two(group.size)]
    call.begin("barrier()", [peer for step in steps for peer in step])
    for dest, source in steps:
        call.exchange(source, allocate_buffer, dest)


def broadcast(group: Group, value: Any, root: int = 0, timeout: float | None = None) -> Any:
    """Return the root's value (see fmi.values.encode) on every rank; the other ranks' argument is ignored."""
    call = CollectiveCall(group, BROADCAST, timeout)
    parent, children = binomial_tree(group.rank, group.size, root)
    parts = encode(value) if parent is None else []
    call.begin(f"broadcast(root={root})", [parent, *children])
    if parent is not None:
        parts = [call.receive(parent)]
    for child in reversed(children):  # the farthest first: it has the largest subtree
        call.send(child, parts)
    return decode(concatenate(parts) if parent is None else parts[0])


def scatter(group: Group, values: Sequence[Any] | None, root: int = 0, timeout: float | None = None) -> Any:
    """Return this rank's value (see fmi.values.encode) of the root's sequence, which has one for each rank.

    The other ranks' argument is ignored. Raises ValueError on the root if it has another number of values.
    """
    call = CollectiveCall(group, SCATTER, timeout)
    parent, children = binomial_tree(group.rank, group.size, root)
    parts: list[list[Buffer]] = []
    if parent is None:
        if values is None or len(values) != group.size:
            raise ValueError(f"cannot scatter {0 if values is None else len(values)} values to {group.size} ranks")
        parts = [encode(values[(root + position) % group.size]) for position in range(group.size)]
    call.begin(f"scatter(root={root})", [parent, *children])
    if parent is not None:
        parts = [[part] for part in split_values(call.receive(parent))]
    for child, distance in reversed(children.items()):
        call.send(child, [buffer for part in parts[distance : 2 * distance] for buffer in part])
    return decode(concatenate(parts[0]))  # a copy, which does not keep the values of other ranks in memory


def gather(group: Group, value: Any, root: int = 0, timeout: float | None = None) -> list[Any] | None:
    """Return the values (see fmi.values.encode) of all ranks in rank order on the root, None on the other ranks."""
    call = CollectiveCall(group, GATHER, timeout)
    parent, children = binomial_tree(group.rank, group.size, root)
    encoded = encode(value)
    call.begin(f"gather(root={root})", [parent, *children])
    received = [call.receive(child) for child in children]
    if parent is not None:
        call.send(parent, [*encoded, *received])
        return None
    parts = [concatenate(encoded), *(part for message in received for part in split_values(message))]
    return _decode_in_rank_order(parts, root)


def allgather(group: Group, value: Any, timeout: float | None = None) -> list[Any]:
    """Return the values (see fmi.values.encode) of all ranks in rank order, on every rank."""
    call = CollectiveCall(group, ALLGATHER, timeout)
    rank, size = group.rank, group.size
    encoded = encode(value)
    steps = [((rank - d) % size, (rank + d) % size, min(d, size - d)) for d in powers_of_two(size)]
    call.begin("allgather()", [peer for dest, source, _ in steps for peer in (dest, source)])
    others: list[memoryview] = []  # of the ranks that follow this one
    for dest, source, count in steps:
        others += split_values(call.receive(source, dest, [*encoded, *others[: count - 1]]))
    return _decode_in_rank_order([concatenate(encoded), *others], rank)


def reduce(
    group: Group, array: NDArray[Any], operation: Operation = "sum", root: int = 0, timeout: float | None = None
) -> NDArray[Any] | None:
    """Return the element-wise sum, product, minimum or maximum over all ranks on the root, None on the other ranks.

    The operands are plain numpy arrays of one shape and type. The result has this type, in native byte order:
    integers wrap around, and overflows cause no warning. For booleans, sum and maximum are the logical or, product
    and minimum the logical and. Complex numbers are ordered by their real parts, then by their imaginary parts. The
    minimum and the maximum of NaN and anything else are NaN. Dates support only minimum and maximum, durations also
    the sum.
    Raises TypeError, which names the type, if it does not support the operation.
    """
    call = CollectiveCall(group, REDUCE, timeout)
    parent, children = binomial_tree(group.rank, group.size, root)
    ufunc, operand = prepare_operand(array, operation)
    call.begin(f"reduce({operand.dtype} {array.shape}, {operation}, root={root})", [parent, *children])
    partial: Partial = operand
    for child in children:
        received = call.exchange_partial(child, partial)
        partial = combine(ufunc, partial, received, out=received)
    if parent is not None:
        call.send_partial(parent, partial)
    result = unwrap_result(partial, operand)
    return result.reshape(array.shape) if parent is None else None


def allreduce(
    group: Group, array: NDArray[Any], operation: Operation = "sum", timeout: float | None = None
) -> NDArray[Any]:
    """Return the result of `reduce` on every rank, bit-identical on all ranks even if their processors differ."""
    call = CollectiveCall(group, ALLREDUCE, timeout)
    ufunc, operand = prepare_operand(array, operation)
    rank, size = group.rank, group.size
    uses_ring = size > 1 and operand.nbytes >= RING_THRESHOLD
    is_identical = uses_ring or is_reproducible(operand.dtype, operation)
    neighbour, partners = doubling_partners(rank, size)
    parent, children = binomial_tree(rank, size, root=0)
    peers = [neighbour, *partners]
    if uses_ring:
        peers += [(rank + 1) % size, (rank - 1) % size]
    if not is_identical:
        peers += [parent, *children]
    call.begin(f"allreduce({operand.dtype} {array.shape}, {operation})", peers)
    # Before a ring, whose messages have no header, all ranks compare their calls by reducing an empty array.
    partial = reduce_by_doubling(call, ufunc, operand[:0] if uses_ring else operand, neighbour, partners)
    result = unwrap_result(partial, operand)
    if uses_ring:
        return reduce_around_ring(call, ufunc, operand).reshape(array.shape)
    if is_identical:
        return unify_nans(result).reshape(array.shape)
    if parent is not None:
        result = unwrap_result(call.exchange_partial(parent, result), operand)  # the result of rank 0
    for child in reversed(children):
        call.send_partial(child, result)
    return result.reshape(array.shape)


def scan(group: Group, array: NDArray[Any], operation: Operation = "sum", timeout: float | None = None) -> NDArray[Any]:
    """Return, on every rank, the result of `reduce` over the ranks from 0 to this one."""
    call = CollectiveCall(group, SCAN, timeout)
    ufunc, operand = prepare_operand(array, operation)
    rank, size = group.rank, group.size
    steps = [(rank + d if rank + d < size else None, rank - d if rank >= d else None) for d in powers_of_two(size)]
    call.begin(f"scan({operand.dtype} {array.shape}, {operation})", [peer for step in steps for peer in step])
    partial: Partial = operand
    for dest, source in steps:
        if source is not None:
            received = call.exchange_partial(source, partial, dest)
            partial = combine(ufunc, received, partial, out=received)
        elif dest is not None:
            call.send_partial(dest, partial)
    return unwrap_result(partial, operand).reshape(array.shape)


def _decode_in_rank_order(parts: Sequence[memoryview], first: int) -> list[Any]:
    """Return the values of all ranks from rank 0 on; the value of rank `first` is the first one in `parts`."""
    return [decode(parts[(rank - first) % len(parts)]) for rank in range(len(parts))]
