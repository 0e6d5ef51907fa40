"""Settings of a dataclass schema with the values that they may take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

__all__ = ["MISSING", "check_settings", "list_keys", "setting"]

MISSING: Any = "???"
"""OmegaConf's mark of a value that must be given."""


def setting(default: Any = MISSING, *, choices: Iterable = (), least: int | None = None) -> Any:
    """A field of a schema.

    Arguments:
        default: The value when it is not given; by default, it must be given.
        choices: The values that are allowed, all if empty.
        least: The smallest value that is allowed.
    """
    return field(default=default, metadata={"choices": tuple(choices), "least": least})


def list_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Yields every key of a schema, those of dataclasses within it as `group.key`."""
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind):
            yield from list_keys(kind, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            yield prefix + name


def check_settings(schema: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuses values that `schema` does not allow.

    Arguments:
        schema: A dataclass whose fields are settings, or such dataclasses.
        values: The values of all fields.
        prefix: What precedes the names in messages, such as "train.".

    Raises:
        ValueError: A value is not allowed; the message names the key, the value and the fix.
    """
    kinds = get_type_hints(schema)
    for item in fields(schema):
        key, value, kind = prefix + item.name, values[item.name], kinds[item.name]
        if is_dataclass(kind):
            check_settings(kind, value, f"{key}.")  # pyright: ignore[reportArgumentType]
        optional = type(None) in get_args(kind)
        if value is None and optional:
            continue
        choices, least = item.metadata.get("choices"), item.metadata.get("least")
        if choices and value not in choices:
            raise ValueError(f"{key}={value} is unknown; choose one of {', '.join(choices)}")
        if least is not None and value < least:
            raise ValueError(f"{key}={value} must be at least {least}{', or null' * optional}")
