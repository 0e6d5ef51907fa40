"""Builds of C++ by several processes, some of which are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from lola_ds.train.zero.extensions import SystemLock, import_deepspeed

HOLD = """
import sys, time
from lola_ds.train.zero.extensions import SystemLock
lock = SystemLock(sys.argv[1])
assert lock.try_acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def lock_file(tmp_path: Path) -> str:
    return str(tmp_path / "lock")


@pytest.fixture
def holder(lock_file: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    words = [sys.executable, "-c", HOLD, lock_file]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_torch_builds_under_it() -> None:
    import_deepspeed()
    assert cpp_extension.FileBaton is SystemLock


def test_one_process_has_the_lock(lock_file: str) -> None:
    first, second = SystemLock(lock_file), SystemLock(lock_file)
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    second.wait()  # for nobody
    assert second.try_acquire()
    second.release()
    assert not Path(lock_file).exists()


def test_lock_of_a_killed_process_is_free(lock_file: str, holder: subprocess.Popen[str]) -> None:
    lock = SystemLock(lock_file)
    assert not lock.try_acquire()
    holder.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    lock.wait()
    assert time.monotonic() - begin < 60
    assert Path(lock_file).exists()  # which torch would wait for
    assert lock.try_acquire()
    lock.release()


def test_file_removed_between_opening_and_locking_is_not_the_lock(
    lock_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who had it gave it back just then: a third process would make another."""
    lock, seen = SystemLock(lock_file), []

    def removed_once(self: SystemLock) -> bool:
        if not seen:
            Path(lock_file).unlink()
        seen.append(is_current(self))
        return seen[-1]

    is_current = SystemLock._is_current
    monkeypatch.setattr(SystemLock, "_is_current", removed_once)
    assert lock.try_acquire()
    assert seen == [False, True]
    assert not SystemLock(lock_file).try_acquire()
    lock.release()
