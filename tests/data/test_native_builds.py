"""The compiled part under sanitizers, and at every level of vector instructions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = "gcc -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=0:handle_sigbus=0:handle_segv=0"}
PYTEST = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--timeout=1000")
OVERFLOW = """
import ctypes, _lola_ds
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
longer = (ctypes.c_char * 5000).from_address(libc.malloc(4000))
_lola_ds.update_hash(_lola_ds.start_hash(), longer)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch):
    """The module `hatch_build`."""
    monkeypatch.syspath_prepend(ROOT)
    import hatch_build

    return hatch_build


def run_python(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the module that was compiled into `folder`."""
    path = os.pathsep.join((str(folder), str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    command = (sys.executable, *command)
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def sanitized(build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Compiles with sanitizers into `tmp_path`; returns the variables that a run needs."""
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc, whose sanitizers this test uses")
    command = ["gcc", "-print-file-name=libasan.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip("gcc has no AddressSanitizer here")
    monkeypatch.setenv("CC", SANITIZE)
    build.compile_reader(ROOT / "lola_ds/data/native", tmp_path)
    return {**SANITIZERS, "LD_PRELOAD": found}


def test_sanitizers_find_nothing_in_the_compiled_part(sanitized, tmp_path):
    tests = ("tests/data/test_native.py", "tests/data/test_xxh3.py")
    done = run_python(tmp_path, *PYTEST, *tests, **sanitized)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_sanitizers_find_a_read_past_the_end(sanitized, tmp_path):
    """So it is the sanitized module that runs."""
    done = run_python(tmp_path, "-c", OVERFLOW, **sanitized)
    assert "heap-buffer-overflow" in done.stderr
    assert done.returncode


@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_narrower_vectors_have_the_same_digests(build, monkeypatch, tmp_path, level):
    """All levels are compiled with the flags of one, so that it runs whatever is chosen."""
    if level not in build.LEVELS:
        pytest.skip(f"{level} is a level of other processors")
    if level == "avx2" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no avx2")
    monkeypatch.setattr(build, "LEVELS", dict.fromkeys(build.LEVELS, build.LEVELS[level]))
    build.compile_reader(ROOT / "lola_ds/data/native", tmp_path)
    done = run_python(tmp_path, *PYTEST, "tests/data/test_xxh3.py")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
