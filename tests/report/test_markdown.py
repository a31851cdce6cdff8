"""Tables in Markdown."""

import re

import pandas as pd

from speechlab.report.markdown import PAGE_COLUMNS, Column, PaperTable


def test_a_wide_table_has_parts_of_a_page():
    """Each begins with the first column; together they have every column once, and one note."""
    names = [f"c{i}" for i in range(2 * PAGE_COLUMNS + 2)]
    rows = pd.DataFrame([range(len(names))], columns=names)
    table = PaperTable(rows, [Column(name, name) for name in names], "N.")
    heads = [re.findall(r"c\d+", line) for line in table.page().splitlines() if "c0" in line]
    assert all(head[0] == "c0" and len(head) <= 1 + PAGE_COLUMNS for head in heads)
    assert [name for head in heads for name in head[1:]] == names[1:]
    assert table.page().count("N.") == 1 and table.page().endswith("N.\n")
