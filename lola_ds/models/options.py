"""Options of models as plain keyword arguments: what is unknown is refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Set
from typing import Any

DESCRIPTIVE = frozenset({"name", "loss"})
"""Keys of a model's configuration that describe it, or its training, and do not change its
weights."""


def check_options(
    what: str, options: Mapping[str, Any], builder: Callable, given: Set[str]
) -> dict[str, Any]:
    """Keeps the options that `builder` takes.

    Arguments:
        what: the name of the configuration, for messages.
        options: the options, among which those of `DESCRIPTIVE` are dropped.
        builder: the class or function they are for.
        given: the arguments of `builder` that do not come from the options.

    Raises:
        ValueError: naming the unknown option and the known ones.
    """
    known = sorted(set(inspect.signature(builder).parameters) - given)
    options = {key: value for key, value in options.items() if key not in DESCRIPTIVE}
    for key in options:
        if key not in known:
            raise ValueError(f"{what}.{key} is unknown; known: {', '.join(known)}")
    return options
