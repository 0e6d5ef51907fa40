"""Optimizer states as tensors and JSON, for files that hold no code.

`pack` takes a tree of dictionaries, lists, tuples, sets, tensors and scalars apart; `unpack` puts
the same tree together: types, dtypes and shapes are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["pack", "unpack"]


def pack(tree: Any) -> tuple[Any, list[Tensor]]:
    """Splits a tree into its structure and its tensors.

    Arguments:
        tree: Dictionaries, lists, tuples, sets, tensors and scalars.

    Returns:
        A structure that `json` writes without loss, and the tensors in the order it numbers them.

    Raises:
        TypeError: The tree holds something else, such as a function.
    """
    tensors: list[Tensor] = []

    def visit(node: Any) -> Any:
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        if isinstance(node, Tensor):
            tensors.append(node)
            return {"tensor": len(tensors) - 1}
        if isinstance(node, dict):
            return {"dict": [[visit(key), visit(value)] for key, value in node.items()]}
        for name, kind in _SEQUENCES.items():
            if isinstance(node, kind):
                return {name: [visit(value) for value in node]}
        raise TypeError(f"optimizer state of type {type(node).__name__} cannot be saved")

    return visit(tree), tensors


def unpack(structure: Any, tensors: Sequence[Tensor]) -> Any:
    """Restores the tree that `pack` split.

    Arguments:
        structure: The structure.
        tensors: The tensors, in the order in which the structure numbers them.
    """
    if not isinstance(structure, dict):
        return structure
    ((name, value),) = structure.items()
    if name == "tensor":
        return tensors[value]
    if name == "dict":
        return {unpack(key, tensors): unpack(item, tensors) for key, item in value}
    return _SEQUENCES[name](unpack(item, tensors) for item in value)


_SEQUENCES: dict[str, type] = {"list": list, "tuple": tuple, "set": set}
