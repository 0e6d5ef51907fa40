"""DeepSpeed, and the C++ that it compiles at its first start."""

from __future__ import annotations

import fcntl
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton


def import_deepspeed() -> Any:
    """The package, which compiles into the virtual environment, by one process at a time."""
    _keep_extensions_in_environment()
    cpp_extension.FileBaton = SystemLock
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside DeepSpeed's own imports
        import deepspeed
    return deepspeed


def build_extensions() -> None:
    """Builds what DeepSpeed would otherwise build on its first start."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import_deepspeed()
    if os.environ["DS_ACCELERATOR"] == "cpu":
        from deepspeed.ops.op_builder.cpu import CPUAdamBuilder, ShareMemCommBuilder

        ShareMemCommBuilder().load(verbose=False)
        CPUAdamBuilder().load(verbose=False)


class SystemLock(FileBaton):
    """The lock file of torch's builds, held by a lock of the operating system.

    torch takes the mere file for a lock, so that after a process was killed while it held one,
    every later start waits for ever.
    """

    def try_acquire(self) -> bool:
        """Takes the lock; False where another process has it."""
        while True:
            self.fd = os.open(self.lock_file_path, os.O_CREAT | os.O_RDWR, 0o666)
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self.fd)
                return False
            if self._is_current():
                return True
            os.close(self.fd)

    def wait(self) -> None:
        """Waits until no process has the lock."""
        try:
            file = os.open(self.lock_file_path, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        finally:
            os.close(file)

    def release(self) -> None:
        """Gives the lock back, and removes its file."""
        assert self.fd is not None
        os.remove(self.lock_file_path)
        os.close(self.fd)

    def _is_current(self) -> bool:
        """Whether the locked file has not been removed by the one who held it before."""
        assert self.fd is not None
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self.lock_file_path))
        except FileNotFoundError:
            return False


def _keep_extensions_in_environment() -> None:
    """Has compiled extensions live in the virtual environment they were compiled for.

    torch's default is one folder per user and Python version; two environments that share it
    compile over each other's at every start. So do two versions of ninja, whose logs differ: the
    environment's own is found first, whether or not the environment was activated.
    """
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
        scripts = str(Path(sys.prefix) / "bin")
        path = os.environ.get("PATH", os.defpath)
        if path.split(os.pathsep)[0] != scripts:
            os.environ["PATH"] = scripts + os.pathsep + path
