"""Every symbol that docs/mathematics.md links to exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
LINK = re.compile(r"\[`([\w.]+)`\]\(([\w./]+\.py)#([\w.]+)\)")


def links() -> list[tuple[str, str, str]]:
    return LINK.findall((DOCS / "mathematics.md").read_text())


def symbols(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """The classes, functions, methods and constants that a module or class defines."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from symbols(node.body, f"{prefix}{node.name}.")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + t.id for t in targets if isinstance(t, ast.Name))


@pytest.mark.parametrize("file", sorted({file for _, file, _ in links()}))
def test_linked_symbols_exist(file: str) -> None:
    defined = set(symbols(ast.parse((DOCS / file).read_text()).body))
    linked = {symbol for _, path, symbol in links() if path == file}
    assert linked <= defined, f"{file} has no {', '.join(sorted(linked - defined))}"


def test_links_say_where_they_lead() -> None:
    """Each shows the symbol's own name, and no link to code escapes the pattern."""
    assert all(name == symbol for name, _, symbol in links())
    assert len(links()) == len(re.findall(r"\]\([^)]*\.py", (DOCS / "mathematics.md").read_text()))
    assert len(links()) > 80
