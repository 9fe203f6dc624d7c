"""Columns of a Parquet file by rows: nested lists become arrays, whatever the size of the file's row groups."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...errors import InputError
from .parquet_arrays import (
    RaggedError,
    is_list,
    is_text,
    leaf_type,
    list_lengths,
    storage_type,
    to_dense,
    to_scalars,
    unwrap,
)
from .source import READ_ERRORS, SourceArray

PARQUET_ERRORS = (*READ_ERRORS, pa.ArrowException, NotImplementedError, MemoryError)
_BUFFER_BYTES = 2**20  # of a column chunk that are in memory, else all of it would be
_BATCH_BYTES = 4 * 2**20
_BATCH_ROWS = 8192
_SAMPLE_ROWS = 16


@dataclass(frozen=True)
class Column:
    """A column of a file, or a member of a column of structs (`image[flux]`).

    `path` is the beginning of the path of its leaves, `type` that of the values of one row without the structs, and
    `metadata` what its fields state.
    """

    name: str
    path: str
    type: Any
    member: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def is_scalar(self) -> bool:
        """Whether it has one number or text per row."""
        value = self.type.value_type if pa.types.is_dictionary(self.type) else self.type
        kinds = pa.types
        is_number = kinds.is_integer(value) or kinds.is_floating(value) or kinds.is_boolean(value)
        return is_number or is_text(value)

    @property
    def is_text(self) -> bool:
        """Whether its values, or those of its lists, are text."""
        return is_text(leaf_type(self.type))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of its numbers; objects for text and anything else."""
        leaf = leaf_type(self.type)
        if pa.types.is_boolean(leaf):
            return np.dtype(np.bool_ if self.is_scalar else np.uint8)
        is_number = pa.types.is_integer(leaf) or pa.types.is_floating(leaf)
        return np.dtype(leaf.to_pandas_dtype()) if is_number else np.dtype(object)


class ParquetColumns:
    """A file whose columns are read each by its own stream, so that they can be read in step or alone."""

    def __init__(self, source: str, stack: ExitStack) -> None:
        self._source, self._stack = source, stack
        self.file = self._open(None)
        self.rows = int(self.file.metadata.num_rows)
        self.metadata = _texts(self.file.schema_arrow.metadata)

    def _open(self, metadata: Any) -> Any:
        file = pq.ParquetFile(
            self._source,
            metadata=metadata,
            pre_buffer=False,
            buffer_size=_BUFFER_BYTES,
            page_checksum_verification=True,
        )
        return self._stack.enter_context(file)

    def list_columns(self) -> dict[str, Column]:
        """Return the columns by their names, and the members of columns of structs as `image[flux]`."""
        schema, paths = self.file.schema_arrow, self.file.metadata.schema
        leaves = [paths.column(number).path for number in range(len(paths))]
        found: dict[str, Column] = {}
        for each in schema:
            own = _texts(each.metadata)
            if each.name in found:
                raise InputError(f"{self._source} has two columns {each.name}; rename one of them")
            found[each.name] = Column(each.name, each.name, each.type, "", own)
            struct = each.type.value_type if is_list(each.type) else each.type
            if not pa.types.is_struct(struct):
                continue
            below = next((leaf for leaf in leaves if leaf.startswith(f"{each.name}.")), each.name)
            levels = each.name.count(".") + (3 if is_list(each.type) else 1)
            prefix = ".".join(below.split(".")[:levels])
            for member in struct:
                type_ = pa.list_(member.type) if is_list(each.type) else member.type
                name, stated = f"{each.name}[{member.name}]", {**own, **_texts(member.metadata)}
                found[name] = Column(name, f"{prefix}.{member.name}", type_, member.name, stated)
        return found

    def read_array(self, column: Column) -> SourceArray:
        """Return a column of numbers as an array (N, ...), NaN where pixels or rows are null.

        Raises InputError if it has no list that says its shape.
        """
        levels = self.find_levels(column)
        if levels is None:
            raise InputError(f"{self._source}: {column.name} has no values in any row; expected numbers")
        shape = _stated_shape(column, levels) or levels
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, math.prod(levels) * max(4, column.dtype.itemsize))))
        order = _permutation(column)

        def convert(array: Any) -> NDArray[Any]:
            values = to_dense(array, levels, column.member).reshape(len(array), *shape)
            return values.transpose(0, *(axis + 1 for axis in order)) if order else values

        final = tuple(shape[axis] for axis in order) if order else shape
        return SourceArray((self.rows, *final), column.dtype, self._reader(column, rows, convert))

    def read_scalars(self, column: Column) -> SourceArray:
        """Return a column of one number or text per row: null integers are masked, null texts None."""
        reader = self._reader(column, _BATCH_ROWS, lambda array: to_scalars(unwrap(array, column.member)))
        return SourceArray((self.rows,), column.dtype, reader)

    def _reader(self, column: Column, rows: int, convert: Any) -> Any:
        arrays: Iterator[Any] | None = None
        left: Any = None
        position = 0

        def read_next(count: int) -> NDArray[Any]:
            nonlocal arrays, left, position
            arrays = arrays if arrays is not None else self._arrays(column, rows)
            pieces: list[NDArray[Any]] = []
            while count:
                if left is None or not len(left):
                    left = next(arrays, None)
                if left is None:
                    break
                piece, left = left[:count], left[count:]
                try:
                    pieces.append(convert(piece))
                except RaggedError as error:
                    raise InputError(
                        f"{self._source}: {column.name} of row {position + error.row} has {error}; expected the same "
                        "shape in all rows"
                    ) from None
                except PARQUET_ERRORS as error:
                    raise self._damaged(column, error) from None
                position, count = position + len(piece), count - len(piece)
            if len(pieces) == 1:
                return pieces[0]
            masked = any(isinstance(piece, np.ma.MaskedArray) for piece in pieces)
            joined: NDArray[Any] = (
                (np.ma if masked else np).concatenate(pieces) if pieces else np.empty(0, column.dtype)
            )
            return joined

        return read_next

    def _arrays(self, column: Column, rows: int) -> Iterator[Any]:
        try:
            file = self._open(self.file.metadata)
            for batch in file.iter_batches(batch_size=rows, columns=[column.path], use_threads=False):
                yield batch.column(0)
        except PARQUET_ERRORS as error:
            raise self._damaged(column, error) from None

    def _damaged(self, column: Column, error: BaseException) -> InputError:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return InputError(f"{self._source}: {column.name} is damaged ({said}); write the file again")

    def find_levels(self, column: Column) -> tuple[int, ...] | None:
        """Return the lengths of the lists in the first row that has any values, None if none has."""
        type_, depth = column.type, 0
        while is_list(type_ := storage_type(type_)):
            type_, depth = type_.value_type, depth + 1
        for array in self._arrays(column, _SAMPLE_ROWS):
            for row in range(len(array)):
                lengths = list_lengths(array[row : row + 1], column.member)
                if len(lengths) == depth:
                    return lengths
        return None


def _texts(metadata: Any) -> dict[str, str]:
    return {
        key.decode("utf-8", "replace").lower(): value.decode("utf-8", "replace")
        for key, value in (metadata or {}).items()
    }


def _stated_shape(column: Column, levels: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of flat lists as their type or the metadata of the column states it, None if nothing does."""
    if isinstance(column.type, pa.FixedShapeTensorType):
        return tuple(column.type.shape)
    text = next((column.metadata[name] for name in ("shape", "image_shape") if name in column.metadata), "")
    numbers = "".join(letter if letter.isdigit() else " " for letter in text).split()
    shape = tuple(int(number) for number in numbers if len(number) < 10)
    return shape if shape and math.prod(shape) == math.prod(levels) else None


def _permutation(column: Column) -> tuple[int, ...]:
    is_tensor = isinstance(column.type, pa.FixedShapeTensorType)
    return tuple(column.type.permutation or ()) if is_tensor else ()
