"""Precision, kernels and random generator of this process."""

from __future__ import annotations

import os

import torch

__all__ = ["choose_precision", "seed_device", "set_inference_precision", "set_numerics"]


def set_numerics(*, tf32: bool, deterministic: bool) -> None:
    """Sets how this process computes from now on.

    Arguments:
        tf32: Whether GPUs multiply and convolve float32 matrices in TensorFloat-32 (10 bits of
            mantissa) where they can.
        deterministic: Whether only kernels are used that give the same bits at every run.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False  # would choose kernels by measuring them
    if deterministic:  # cuBLAS reads the variable when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # It would fill ZeRO's buckets at every step. (torch's type stubs do not list the attribute.)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010


def choose_precision(precision: str, device: torch.device) -> str:
    """Replaces `auto` by `bf16` where the device multiplies bfloat16 in hardware, else by `fp32`.

    A CPU without bfloat16 units is up to a hundred times slower at it than at float32.

    Arguments:
        precision: The configured precision: `auto`, `fp32`, `bf16` or `fp16`.
        device: The device that computes.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions of torch
        supported = any(has[name] for name in has if name.endswith("bf16"))
    return "bf16" if supported else "fp32"


def set_inference_precision(precision: str, device: torch.device) -> str:
    """Sets how networks are run for inference; with `bf16`, TensorFloat-32 where float32 is left.

    Arguments:
        precision: The configured precision: `auto`, `fp32` or `bf16`.
        device: The device that computes.

    Returns:
        The precision, `fp32` or `bf16`.

    Raises:
        ValueError: There is no such precision.
    """
    chosen = choose_precision(precision, device)
    if chosen not in ("fp32", "bf16"):
        raise ValueError(f"precision={precision} is unknown; choose fp32, bf16 or auto")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = chosen == "bf16"
    return chosen


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds the generator of one device; `torch.manual_seed` would seed those of all devices."""
    generators = torch.cuda.default_generators if device.type == "cuda" else ()
    generator = generators[device.index or 0] if generators else torch.default_generator
    generator.manual_seed(seed)
