"""Keys that were renamed: new commands refuse them, old files are translated."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

__all__ = ["RENAMED", "refuse_renamed", "translate_renamed"]

RENAMED = {
    "batch": "batch_size",
    "flavour": "variant",
    "label_weight": "guidance_scale",
    "train.recheck": "train.verify_reads",
    "train.restrict": "train.max_trajectories",
}
"""Old keys and what they are called now."""


def refuse_renamed(key: str, text: str, known: Collection[str]) -> None:
    """Refuses an old key.

    Arguments:
        key: The key of an override.
        text: Its value.
        known: The keys of the command.

    Raises:
        ValueError: The key is an old one of this command; the message names the new one.
    """
    if key not in known and RENAMED.get(key) in known:
        raise ValueError(f"{key}={text}: the key has a new name; write {RENAMED[key]}={text}")


def translate_renamed(config: dict[str, Any]) -> None:
    """Gives the keys of an old configuration their new names, in place."""
    for old, new in RENAMED.items():
        *groups, name = old.split(".")
        group: Any = config
        for part in groups:
            group = group.get(part) if isinstance(group, dict) else None
        if isinstance(group, dict) and name in group:
            group.setdefault(new.rpartition(".")[2], group[name])
            del group[name]
