"""lola_ds: latent-space neural emulators of physics, trained at scale with DeepSpeed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lola_ds.build import load_emulator, load_model

__version__ = "0.1.0"
__all__ = ["load_emulator", "load_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from lola_ds import build

        return getattr(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
