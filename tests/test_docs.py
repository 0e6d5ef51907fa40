"""The pages name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("lola_ds", "data_prep", "launch", "tests", "benchmarks", "configs", "ds_configs", "docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`([\w/.]+)`", page.read_text())
    paths = {name for name in named if name.startswith(tuple(f"{f}/" for f in FOLDERS))}
    paths -= {"configs/cluster/mine.yaml"}  # written by the reader
    assert not {path for path in paths if not (ROOT / path).exists()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not {link for link in links if not (page.parent / link).exists()}
