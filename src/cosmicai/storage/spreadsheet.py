"""Text that a spreadsheet, which opens a CSV file, takes for text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

# What begins a formula, also in the wide letters of East Asian text, and what a spreadsheet skips before one.
_FORMULA = "^([=+\\-@\\t\\r\\n＝＋－＠])"


def quote_formulas(table: pa.Table) -> pa.Table:
    """Return the table with a `'` before every text, and every column's name, that a spreadsheet would compute."""
    import pyarrow as pa
    from pyarrow import compute

    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            quoted = compute.replace_substring_regex(table.column(index), _FORMULA, r"'\1")
            table = table.set_column(index, field, quoted)
    return table.rename_columns([quote_formula(name) for name in table.column_names])


def quote_formula(text: str) -> str:
    """Return a text as `quote_formulas` writes it."""
    return re.sub(_FORMULA, r"'\1", text)
