"""The tables of docs/inputs.md name a test for each row, and there is one of that name."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "inputs.md").read_text()
ROWS = [line for line in PAGE.partition("## Hostile input")[2].splitlines() if line.startswith("| ")]


def test_each_row_of_hostile_input_names_a_test_that_exists() -> None:
    rows = [row for row in ROWS if not row.startswith("| input |")]
    known = set(re.findall(r"def (test_\w+)\(", "".join(path.read_text() for path in TESTS.rglob("test_*.py"))))
    named = [re.search(r"`(test_\w+)` \|$", row) for row in rows]
    assert [row for row, name in zip(rows, named, strict=True) if name is None or name[1] not in known] == []
    assert len(rows) > 40
