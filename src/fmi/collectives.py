"""What all ranks of a group do together: each calls the same functions in the same order.

`timeout`, in seconds, is of the whole call; None stands for the group's. Every function raises PeerLost if a rank is
gone, DeadlinePassed if the others do not come in time, and Disagreement if they call something else, with another
root, or with an array of another shape or type. After any of these the group is of no use any more.
What is given is never changed, and what is returned is in memory of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .collective_call import Call, Partial
from .errors import Disagreement
from .topology import partners, powers, tree
from .values import Buffer, bytes_of, decode, encode, joined, new_memory, plain, split

if TYPE_CHECKING:
    from .group import Group

Operation = Literal["sum", "product", "min", "max"]

UFUNCS: dict[str, np.ufunc] = {"sum": np.add, "product": np.multiply, "min": np.minimum, "max": np.maximum}
RING_FROM = 2**20  # bytes of an array, from which it pays to send less in more messages
BARRIER, BROADCAST, SCATTER, GATHER, ALLGATHER, REDUCE, ALLREDUCE, SCAN = range(1, 9)  # kinds of tags


def barrier(group: Group, timeout: float | None = None) -> None:
    """Returns when all ranks have called it."""
    call = Call(group, BARRIER, timeout)
    steps = [((group.rank + d) % group.size, (group.rank - d) % group.size) for d in powers(group.size)]
    call.begin("barrier()", [peer for step in steps for peer in step])
    for to, source in steps:
        call.exchange(source, new_memory, to)


def broadcast(group: Group, value: Any, root: int = 0, timeout: float | None = None) -> Any:
    """The root's value (see fmi.values.encode) on every rank. What the others give does not matter."""
    call = Call(group, BROADCAST, timeout)
    parent, children = tree(group.rank, group.size, root)
    parts = encode(value) if parent is None else []
    call.begin(f"broadcast(root={root})", [parent, *children])
    if parent is not None:
        parts = [call.receive(parent)]
    for child in reversed(children):  # the farthest first: it has the most to hand on
        call.send(child, parts)
    return decode(joined(parts) if parent is None else parts[0])


def scatter(group: Group, values: Sequence[Any] | None, root: int = 0, timeout: float | None = None) -> Any:
    """This rank's value (see fmi.values.encode) of the root's sequence, which has one for each rank.

    What the others give does not matter. Raises ValueError on the root if it has another number of values.
    """
    call = Call(group, SCATTER, timeout)
    parent, children = tree(group.rank, group.size, root)
    parts: list[list[Buffer]] = []
    if parent is None:
        if values is None or len(values) != group.size:
            raise ValueError(f"{0 if values is None else len(values)} values cannot go to {group.size} ranks")
        parts = [encode(values[(root + place) % group.size]) for place in range(group.size)]
    call.begin(f"scatter(root={root})", [parent, *children])
    if parent is not None:
        parts = [[part] for part in split(call.receive(parent))]
    for child, distance in reversed(children.items()):
        call.send(child, [buffer for part in parts[distance : 2 * distance] for buffer in part])
    return decode(joined(parts[0]))  # a copy, which does not keep what was for others


def gather(group: Group, value: Any, root: int = 0, timeout: float | None = None) -> list[Any] | None:
    """The values (see fmi.values.encode) of all ranks in their order on the root, None elsewhere."""
    call = Call(group, GATHER, timeout)
    parent, children = tree(group.rank, group.size, root)
    own = encode(value)
    call.begin(f"gather(root={root})", [parent, *children])
    received = [call.receive(child) for child in children]
    if parent is not None:
        call.send(parent, [*own, *received])
        return None
    return _in_order([joined(own), *(part for message in received for part in split(message))], root)


def allgather(group: Group, value: Any, timeout: float | None = None) -> list[Any]:
    """The values (see fmi.values.encode) of all ranks in their order, on every rank."""
    call = Call(group, ALLGATHER, timeout)
    rank, size = group.rank, group.size
    own = encode(value)
    steps = [((rank - d) % size, (rank + d) % size, min(d, size - d)) for d in powers(size)]
    call.begin("allgather()", [peer for to, source, _ in steps for peer in (to, source)])
    others: list[memoryview] = []  # of the ranks that follow this one
    for to, source, count in steps:
        others += split(call.receive(source, to, [*own, *others[: count - 1]]))
    return _in_order([joined(own), *others], rank)


def reduce(
    group: Group, array: NDArray[Any], operation: Operation = "sum", root: int = 0, timeout: float | None = None
) -> NDArray[Any] | None:
    """The element-wise sum, product, minimum or maximum of the arrays of all ranks on the root, None elsewhere.

    They are plain numpy arrays of one shape and type. The result has this type, in the machine's byte order:
    integers wrap around, and nothing warns of an overflow. Of booleans the sum and the maximum are the logical or,
    the product and the minimum the logical and. Complex numbers are ordered by their real parts, then by their
    imaginary ones. The minimum and the maximum of a NaN and anything else are a NaN. Dates have only minimum and
    maximum, durations a sum too.
    Raises TypeError, which names the type, if it does not have the operation.
    """
    call = Call(group, REDUCE, timeout)
    parent, children = tree(group.rank, group.size, root)
    ufunc, own = _operands(array, operation)
    call.begin(f"reduce({own.dtype} {array.shape}, {operation}, root={root})", [parent, *children])
    partial: Partial = own
    for child in children:
        theirs = call.trade(child, partial)
        partial = _reduced(ufunc, partial, theirs, out=theirs)
    if parent is not None:
        call.tell(parent, partial)
    result = _result(partial, own)
    return result.reshape(array.shape) if parent is None else None


def allreduce(
    group: Group, array: NDArray[Any], operation: Operation = "sum", timeout: float | None = None
) -> NDArray[Any]:
    """As `reduce`, on every rank, with the same bits on all of them, even if their processors differ."""
    call = Call(group, ALLREDUCE, timeout)
    ufunc, own = _operands(array, operation)
    rank, size = group.rank, group.size
    is_long = size > 1 and own.nbytes >= RING_FROM
    is_sure = is_long or _is_sure(own.dtype, operation)
    neighbour, others = partners(rank, size)
    parent, children = tree(rank, size, root=0)
    peers = [neighbour, *others]
    if is_long:
        peers += [(rank + 1) % size, (rank - 1) % size]
    if not is_sure:
        peers += [parent, *children]
    call.begin(f"allreduce({own.dtype} {array.shape}, {operation})", peers)
    # Of a long array first of nothing: all must agree before its elements go around.
    result = _result(_doubled(call, ufunc, own[:0] if is_long else own, neighbour, others), own)
    if is_long:
        return _around(call, ufunc, own).reshape(array.shape)
    if is_sure:
        return _with_one_nan(result).reshape(array.shape)
    if parent is not None:
        result = _result(call.trade(parent, result), own)  # what rank 0 has counts
    for child in reversed(children):
        call.tell(child, result)
    return result.reshape(array.shape)


def scan(group: Group, array: NDArray[Any], operation: Operation = "sum", timeout: float | None = None) -> NDArray[Any]:
    """As `reduce`, on every rank, of the arrays of the ranks from 0 to this one."""
    call = Call(group, SCAN, timeout)
    ufunc, own = _operands(array, operation)
    rank, size = group.rank, group.size
    steps = [(rank + d if rank + d < size else None, rank - d if rank >= d else None) for d in powers(size)]
    call.begin(f"scan({own.dtype} {array.shape}, {operation})", [peer for step in steps for peer in step])
    partial: Partial = own
    for to, source in steps:
        if source is not None:
            theirs = call.trade(source, partial, to)
            partial = _reduced(ufunc, theirs, partial, out=theirs)
        elif to is not None:
            call.tell(to, partial)
    return _result(partial, own).reshape(array.shape)


def _in_order(parts: Sequence[memoryview], first: int) -> list[Any]:
    """The values of all ranks from rank 0 on; those of rank `first` come first in `parts`."""
    return [decode(parts[(rank - first) % len(parts)]) for rank in range(len(parts))]


def _operands(array: NDArray[Any], operation: str) -> tuple[np.ufunc, NDArray[Any]]:
    """What reduces, and the elements in C order and the machine's byte order, perhaps in the array's own memory."""
    if operation not in UFUNCS:
        raise ValueError(f"there is no operation {operation!r}; choose one of {', '.join(UFUNCS)}")
    ufunc, elements = UFUNCS[operation], plain(array)
    try:
        dtype = elements.dtype.newbyteorder("=")
        is_closed = ufunc.resolve_dtypes((dtype, dtype, None)) == (dtype, dtype, dtype)
    except TypeError:
        is_closed = False
    if not is_closed or elements.dtype.hasobject:
        raise TypeError(f"arrays of type {elements.dtype} have no {operation}")
    return ufunc, np.ascontiguousarray(elements, dtype).reshape(-1)


def _reduced(ufunc: np.ufunc, left: Partial, right: Partial, out: Partial) -> Partial:
    """Both together, in the memory of `out`, which is one of them. Lower ranks are on the left."""
    if isinstance(left, Disagreement):
        return left
    if isinstance(right, Disagreement):
        return right
    with np.errstate(all="ignore"):  # one rank must not stop at what the others do not even compute
        reduced: NDArray[Any] = ufunc(left, right, out=out)
    return reduced


def _result(partial: Partial, own: NDArray[Any]) -> NDArray[Any]:
    """The elements, not in memory of this rank's own. Raises the disagreement if there are none."""
    if isinstance(partial, Disagreement):
        raise partial
    return own.copy() if partial is own else partial


def _is_sure(dtype: np.dtype[Any], operation: str) -> bool:
    """Whether two ranks that compute this from the same numbers have the same bits, but for those of a NaN.

    Not so where numpy's loops for one processor and for another may differ: in the minimum of 0 and -0, and in the
    product of complex numbers, multiplied and added at once or not. Long doubles have bytes with anything in them.
    """
    if dtype.kind not in "fc":
        return True
    return dtype.char not in "gG" and (operation == "sum" or (operation == "product" and dtype.kind == "f"))


def _with_one_nan(elements: NDArray[Any]) -> NDArray[Any]:
    """The same with one kind of NaN: of two kinds numpy's loops give either, even by where they are in memory."""
    if elements.dtype.kind in "fc":
        real = elements.view(elements.real.dtype)
        real[np.isnan(real)] = np.nan
    return elements


def _doubled(call: Call, ufunc: np.ufunc, own: NDArray[Any], neighbour: int | None, others: list[int]) -> Partial:
    """What all ranks have together, by recursive doubling: two that trade compute the same."""
    rank = call.group.rank
    if neighbour is not None and neighbour > rank:
        return call.trade(neighbour, own, neighbour)
    partial: Partial = own
    if neighbour is not None:
        theirs = call.trade(neighbour, partial)
        partial = _reduced(ufunc, theirs, partial, out=theirs)
    for other in others:
        theirs = call.trade(other, partial, other)
        left, right = (partial, theirs) if rank < other else (theirs, partial)
        partial = _reduced(ufunc, left, right, out=theirs)
    if neighbour is not None:
        call.tell(neighbour, partial)
    return partial


def _around(call: Call, ufunc: np.ufunc, own: NDArray[Any]) -> NDArray[Any]:
    """What all ranks have together: each part goes around once to be reduced, and once more to be known."""
    rank, size = call.group.rank, call.group.size
    total = np.empty_like(own)

    def part(array: NDArray[Any], number: int) -> NDArray[Any]:
        number %= size
        return array[len(array) * number // size : len(array) * (number + 1) // size]

    def pass_on(sent: NDArray[Any], place: NDArray[Any]) -> None:
        call.exchange((rank - 1) % size, lambda length: _exactly(place, length), (rank + 1) % size, [bytes_of(sent)])

    for step in range(size - 1):
        place = part(total, rank - step - 1)
        pass_on(part(total if step else own, rank - step), place)
        with np.errstate(all="ignore"):
            ufunc(place, part(own, rank - step - 1), out=place)
    for step in range(size - 1):
        pass_on(part(total, rank - step + 1), part(total, rank - step))
    return total


def _exactly(place: NDArray[Any], length: int) -> memoryview:
    if length != place.nbytes:
        raise Disagreement(f"{length} bytes came where {place.nbytes} were to go around")
    return bytes_of(place)
