"""Test that CSV files hold no text that a spreadsheet would compute."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest

from analysis.formatting import to_csv
from cosmicai.storage.spreadsheet import quote_formulas


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_formulas_in_cells_and_names_become_text(kind: pa.DataType) -> None:
    texts = ["=1+1", "+1", "-1", "@a", "\t=1", "\n=1", "\r=1", "＝1", "a=1", "", None]
    quoted = quote_formulas(pa.table({"=host": pa.array(texts, kind), "-n": [-1.0] * len(texts)}))
    assert quoted.column_names == ["'=host", "'-n"]
    expected = [f"'{text}" for text in texts[:8] if text is not None]
    assert quoted["'=host"].to_pylist() == [*expected, "a=1", "", None]
    assert quoted["'-n"].to_pylist() == [-1.0] * len(texts)


def test_tables_of_the_analysis_hold_no_formulas() -> None:
    assert to_csv(pd.DataFrame({"host": ["=cmd()"], "@b": [-2]})) == b'"host","\'@b"\n"\'=cmd()",-2\n'
