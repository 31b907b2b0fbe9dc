# SPDX-License-Identifier: Apache-2.0
"""The table of layouts names tests that exist, once each row, in order."""

from __future__ import annotations

from tests.layout_table import ROOT, files_with_rows, rows


def test_every_row_names_a_test_that_records_rows() -> None:
    known = files_with_rows()
    for row in rows():
        file, _, name = row.strip("| ").rpartition(" | ")[2].partition("::")
        assert file in known, row
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), row


def test_rows_are_sorted_and_none_is_there_twice() -> None:
    assert rows() == sorted(set(rows()))
