"""Chooses between torch and Triton, once for the process, and logs the choice.

A kernel's wrapper describes its tensors with a `Case` and asks `use_triton`. In mode `auto` Triton
runs wherever it can: on a GPU, in float32, bfloat16 or float16, for shapes that fit its registers.
Mode `torch` never uses it. Mode `triton` uses it or raises an error, and also runs on a CPU when
Triton's interpreter is on (`TRITON_INTERPRET=1` before the first import of triton), which is how
the kernels are tested where there is no GPU.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "enable_second_derivatives",
    "get_kernel_mode",
    "interpreted",
    "second_derivatives_enabled",
    "set_kernel_mode",
    "use_triton",
]

MODES = ("auto", "torch", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_log = logging.getLogger("lola_ds.kernels")
_state = {"mode": "auto"}
_twice = {"wanted": False}
_logged: set[tuple[object, ...]] = set()


def set_kernel_mode(mode: str) -> None:
    """Chooses the mode for the process; modules compiled before keep what they were compiled with.

    Arguments:
        mode: `auto`, `torch` or `triton`.

    Raises:
        ValueError: The mode is unknown, or Triton cannot be imported.
    """
    if mode not in MODES:
        raise ValueError(f"kernels={mode} is unknown; choose one of {', '.join(MODES)}")
    if mode == "triton":
        try:
            import triton  # noqa: F401
        except ImportError as error:
            raise ValueError("kernels=triton needs the package triton; kernels=auto") from error
    _state["mode"] = mode
    _logged.clear()


def get_kernel_mode() -> str:
    """Returns the mode of the process."""
    return _state["mode"]


@contextlib.contextmanager
def enable_second_derivatives() -> Iterator[None]:
    """A context in which every operation can be differentiated twice, as kernels cannot.

    Modules compiled before keep what they were compiled with.
    """
    before, _twice["wanted"] = _twice["wanted"], True
    try:
        yield
    finally:
        _twice["wanted"] = before


def second_derivatives_enabled() -> bool:
    """Returns whether operations should be differentiable twice."""
    return _twice["wanted"]


def use_triton(kernel: str, x: Tensor, refusal: str | None = None) -> bool:
    """Returns whether a kernel runs in Triton on tensors like `x`.

    Arguments:
        kernel: The name of the kernel, for the log.
        x: The tensor whose device and dtype decide.
        refusal: The reason why shapes do not suit the kernel; None if they do.

    Raises:
        ValueError: The mode is `triton` and the kernel cannot run.
    """
    return _decide(kernel, x.device.type, x.dtype, refusal)


def _decide(kernel: str, device: str, dtype: torch.dtype, refusal: str | None) -> bool:
    mode = _state["mode"]
    if mode == "torch" or _twice["wanted"]:
        return False
    if refusal is None and dtype not in DTYPES:
        refusal = f"{dtype} is not one of float32, bfloat16, float16"
    if refusal is None and device != "cuda" and not (mode == "triton" and interpreted()):
        refusal = f"tensors lie on {device} and Triton's interpreter (TRITON_INTERPRET=1) is off"
    if refusal is not None and mode == "triton":
        raise ValueError(f"kernels=triton, but {kernel} cannot run: {refusal}; choose kernels=auto")
    _log_choice(kernel, device, dtype, refusal)
    return refusal is None


# What `torch.compiler.assume_constant_result` does, which would import the compiler: 1.5 s.
setattr(_decide, "_dynamo_marked_constant", True)  # noqa: B010


def _log_choice(kernel: str, device: str, dtype: torch.dtype, refusal: str | None) -> None:
    choice = (kernel, device, dtype, refusal)
    if choice in _logged:
        return
    _logged.add(choice)
    where = f"{str(dtype).removeprefix('torch.')} on {device}"
    taken = "triton" if refusal is None else f"torch ({refusal})"
    _log.debug("%s, %s: %s", kernel, where, taken)


def interpreted() -> bool:
    """Returns whether Triton's kernels run in its interpreter, on a CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
