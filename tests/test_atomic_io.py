"""Files and folders appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lola_ds.atomic_io import move_into_place, replace_folder, replacing, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomic(path, "α")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["summary.json"]


def test_an_exception_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("before")

    def fail() -> None:
        with replacing(path) as temporary:
            assert temporary.suffix == path.suffix
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "before"
    assert names(tmp_path) == ["summary.json"]


def test_two_writers_use_different_temporary_files(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with replacing(path) as one, replacing(path) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"  # it left its block last
    assert names(tmp_path) == ["a.csv"]


def test_bytes_reach_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_atomic(tmp_path / "a", b"a")
    assert calls == ["fsync", "replace", "fsync"]


def test_only_replace_folder_replaces_a_folder(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        move_into_place(tmp_path / "new", tmp_path / "old")
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old/file").read_text() == "new"
    assert names(tmp_path) == ["old"]
