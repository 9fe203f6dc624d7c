"""Element-wise reductions: operands, their combination in rank order, and the two algorithms of allreduce."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .collective_call import CollectiveCall, Partial
from .errors import CollectiveMismatch
from .values import array_bytes, as_plain_array

UFUNCS: dict[str, np.ufunc] = {"sum": np.add, "product": np.multiply, "min": np.minimum, "max": np.maximum}


def prepare_operand(array: NDArray[Any], operation: str) -> tuple[np.ufunc, NDArray[Any]]:
    """Return the ufunc of an operation, and the elements as a 1-D array in C order and native byte order.

    The elements may share the array's memory. Raises ValueError if the operation is unknown, and TypeError if the
    array's type does not support it.
    """
    if operation not in UFUNCS:
        raise ValueError(f"unknown operation {operation!r}; choose one of {', '.join(UFUNCS)}")
    ufunc, elements = UFUNCS[operation], as_plain_array(array)
    try:
        dtype = elements.dtype.newbyteorder("=")
        is_supported = ufunc.resolve_dtypes((dtype, dtype, None)) == (dtype, dtype, dtype)
    except TypeError:
        is_supported = False
    if not is_supported or elements.dtype.hasobject:
        raise TypeError(f"arrays of type {elements.dtype} do not support {operation}")
    return ufunc, np.ascontiguousarray(elements, dtype).reshape(-1)


def combine(ufunc: np.ufunc, left: Partial, right: Partial, out: Partial) -> Partial:
    """Combine two intermediate results in the memory of `out`, which is one of them; `left` is of lower ranks."""
    if isinstance(left, CollectiveMismatch):
        return left
    if isinstance(right, CollectiveMismatch):
        return right
    with np.errstate(all="ignore"):  # no rank may stop at an overflow that the others do not compute
        combined: NDArray[Any] = ufunc(left, right, out=out)
    return combined


def unwrap_result(partial: Partial, operand: NDArray[Any]) -> NDArray[Any]:
    """Return the elements of a result, in memory that is not the operand's. Raises CollectiveMismatch if it is one."""
    if isinstance(partial, CollectiveMismatch):
        raise partial
    return operand.copy() if partial is operand else partial


def is_reproducible(dtype: np.dtype[Any], operation: str) -> bool:
    """Return whether all processors compute the same bits, except those of a NaN, from the same operands.

    numpy's loops for different processors may differ in the minimum of 0 and -0, and in the product of complex
    numbers, where multiplication and addition may be fused. Long doubles contain undefined bytes.
    """
    if dtype.kind not in "fc":
        return True
    return dtype.char not in "gG" and (operation == "sum" or (operation == "product" and dtype.kind == "f"))


def unify_nans(elements: NDArray[Any]) -> NDArray[Any]:
    """Replace all NaNs by the same NaN, in place: numpy's loops may return either of two different ones."""
    if elements.dtype.kind in "fc":
        real = elements.view(elements.real.dtype)
        real[np.isnan(real)] = np.nan
    return elements


def reduce_by_doubling(
    call: CollectiveCall, ufunc: np.ufunc, operand: NDArray[Any], neighbour: int | None, partners: list[int]
) -> Partial:
    """Reduce over all ranks by recursive doubling (see fmi.topology): two partners compute the same result."""
    rank = call.group.rank
    if neighbour is not None and neighbour > rank:
        return call.exchange_partial(neighbour, operand, neighbour)
    partial: Partial = operand
    if neighbour is not None:
        received = call.exchange_partial(neighbour, partial)
        partial = combine(ufunc, received, partial, out=received)
    for partner in partners:
        received = call.exchange_partial(partner, partial, partner)
        left, right = (partial, received) if rank < partner else (received, partial)
        partial = combine(ufunc, left, right, out=received)
    if neighbour is not None:
        call.send_partial(neighbour, partial)
    return partial


def reduce_around_ring(call: CollectiveCall, ufunc: np.ufunc, operand: NDArray[Any]) -> NDArray[Any]:
    """Reduce over all ranks by a ring: each part of the array is passed around once to be reduced, and once more to
    distribute its result."""
    rank, size = call.group.rank, call.group.size
    total = np.empty_like(operand)

    def part(array: NDArray[Any], number: int) -> NDArray[Any]:
        number %= size
        return array[len(array) * number // size : len(array) * (number + 1) // size]

    def pass_on(outgoing: NDArray[Any], incoming: NDArray[Any]) -> None:
        previous, following = (rank - 1) % size, (rank + 1) % size
        call.exchange(previous, lambda length: _exact_buffer(incoming, length), following, [array_bytes(outgoing)])

    for step in range(size - 1):
        incoming = part(total, rank - step - 1)
        pass_on(part(total if step else operand, rank - step), incoming)
        with np.errstate(all="ignore"):
            ufunc(incoming, part(operand, rank - step - 1), out=incoming)
    for step in range(size - 1):
        pass_on(part(total, rank - step + 1), part(total, rank - step))
    return total


def _exact_buffer(array: NDArray[Any], length: int) -> memoryview:
    """Return the memory of an array for a message. Raises CollectiveMismatch if the message has another length."""
    if length != array.nbytes:
        raise CollectiveMismatch(f"received {length} bytes in a ring where {array.nbytes} were expected")
    return array_bytes(array)
