"""`key=value` overrides of the commands that compose no Hydra configuration."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from lola_ds.config.renamed import refuse_renamed
from lola_ds.config.setting import check_settings

__all__ = ["explain_unknown", "parse_overrides"]

T = TypeVar("T")
_EXPECTED = {int: "an integer", float: "a number", bool: "true or false"}


def parse_overrides(schema: type[T], overrides: Sequence[str]) -> T:
    """Reads overrides into a dataclass.

    A list takes its items between commas, and a key that may be None takes `null`. Texts are taken
    as they are, but for OmegaConf's interpolations, such as `out=${oc.env:HOME}/shards`.

    Arguments:
        schema: A dataclass of typed fields, best made with `setting`.
        overrides: Such as `["out=WELL", "gammas=1.3,1.4"]`.

    Returns:
        An instance of `schema`.

    Raises:
        ValueError: A key is unknown or missing, or a value is not allowed; the message names the
            key, the value and the fix.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    kinds = get_type_hints(schema)
    config = OmegaConf.structured(schema)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"'{override}' is not of the form key=value")
        refuse_renamed(key, text, kinds)
        if key not in kinds:
            raise ValueError(explain_unknown(key, kinds))
        if not text:
            raise ValueError(f"{key}= has no value; write {key}=… or leave it out")
        try:
            config[key] = _split(text, kinds[key])
        except OmegaConfBaseException as error:
            raise ValueError(f"{key}={text}: expected {_describe(kinds[key])}") from error
    try:
        missing = OmegaConf.missing_keys(config)
        values: Any = None if missing else OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    if missing:
        raise ValueError(f"missing {', '.join(f'{key}=…' for key in kinds if key in missing)}")
    check_settings(schema, vars(values))
    return values


def explain_unknown(key: str, known: Iterable[str]) -> str:
    """A message about an unknown key, with the closest known ones and where all of them are."""
    close = difflib.get_close_matches(key, list(known), n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else "--help lists the keys"
    return f"unknown key '{key}' ({hint})"


def _split(text: str, kind: Any) -> Any:
    """The value to assign to a field of this type."""
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if text == "null" and type(None) in kinds:
        return None
    return text.split(",") if any(get_origin(k) is list for k in kinds) else text


def _describe(kind: Any) -> str:
    """What a field of this type expects."""
    if isinstance(kind, types.UnionType):
        return " or ".join("null" if k is type(None) else _describe(k) for k in get_args(kind))
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return f"{_EXPECTED.get(item, 'text')}, or several between commas"
    return _EXPECTED.get(kind, "text")
