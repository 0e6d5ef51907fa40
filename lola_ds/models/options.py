"""Options of networks as plain keyword arguments; unknown ones are refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Set
from typing import Any

__all__ = ["check_options"]

OTHER_KEYS = frozenset({"name", "loss"})
"""Keys of a model's configuration that its network does not take: its name, and its objective's
loss."""


def check_options(
    what: str, options: Mapping[str, Any], builder: Callable, given: Set[str]
) -> dict[str, Any]:
    """Returns the options of a network, without those in `OTHER_KEYS`.

    Arguments:
        what: The name of the configuration, for messages.
        options: The configuration.
        builder: The class of the network.
        given: The arguments of `builder` that do not come from the configuration.

    Raises:
        ValueError: The network has no such option.
    """
    known = sorted(set(inspect.signature(builder).parameters) - given)
    options = {key: value for key, value in options.items() if key not in OTHER_KEYS}
    for key in options:
        if key not in known:
            raise ValueError(f"{what}.{key} is unknown; known: {', '.join(known)}")
    return options
