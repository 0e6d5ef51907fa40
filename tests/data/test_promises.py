"""The documentation of the loader's promises names tests that are there."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_every_test_that_the_documentation_names_exists():
    text = (TESTS.parent / "docs" / "data.md").read_text()
    for number in range(1, 9):
        assert f"\n| {number}. " in text
    sources = {path.name: path.read_text() for path in TESTS.rglob("test_*.py")}
    there = set(sources) | set(re.findall(r"def (test_\w+)\(", "".join(sources.values())))
    named = set(re.findall(r"\btest_\w+(?:\.py)?", text))
    assert len(named) > 20
    assert named <= there
