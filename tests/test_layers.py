"""Imports go down only: the layers, read from the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "benchmarks": 10,
    "data_prep": 9,
    "launch": 9,
    "lola_ds.cli": 8,
    "lola_ds.estimate": 7,
    "lola_ds.evaluate": 7,
    "lola_ds.build": 6,
    "lola_ds.train": 5,
    "lola_ds.emulate": 4,
    "lola_ds.objectives": 4,
    "lola_ds.models": 3,
    "lola_ds.data": 2,
    "lola_ds.nn": 2,
    "lola_ds.augment": 1,
    "lola_ds.binned_losses": 1,
    "lola_ds.config": 1,
    "lola_ds.distributed": 1,
    "lola_ds.fields": 1,
    "lola_ds.hardware": 1,
    "lola_ds.kernels": 1,
    "lola_ds.masks": 1,
    "lola_ds.metrics": 1,
    "lola_ds.atomic_io": 0,
    "lola_ds.hashing": 0,
    "lola_ds.log": 0,
}
# The packages that may import a library which the others must not depend on.
ONLY_IN = {
    "deepspeed": ("lola_ds.train.zero",),
    "heavyball": ("lola_ds.train.optim",),
    "omegaconf": ("lola_ds.config", "lola_ds.build", "lola_ds.cli"),
    "hydra": ("lola_ds.config",),
    "azula": ("lola_ds.models", "lola_ds.emulate", "benchmarks"),
    "triton": ("lola_ds.kernels",),
    "h5py": ("data_prep", "benchmarks"),
    "wandb": ("lola_ds.train",),
}


def sources() -> list[Path]:
    packages = ("lola_ds", "data_prep", "launch", "benchmarks")
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_package(name: str) -> str | None:
    """The entry of LAYERS that holds module `name`."""
    return next((r for r in LAYERS if name == r or name.startswith(r + ".")), None)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in it, with the line."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            prefix = ".".join(base) if node.level else ""
            module = ".".join(part for part in (prefix, node.module) if part)
            for alias in node.names:  # `from . import build` imports the module build
                full = f"{module}.{alias.name}"
                yield (
                    (full if layer_package(full) not in (None, layer_package(module)) else module),
                    node.lineno,
                )


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def faults(path: Path) -> Iterator[str]:
    here = layer_package(module_name(path))
    for target, line in imports(path):
        place = f"{path.relative_to(ROOT)}:{line}"
        library = target.partition(".")[0]
        if library in ONLY_IN and not within(module_name(path), ONLY_IN[library]):
            yield f"{place} imports {library}, which only {ONLY_IN[library]} may"
        there = layer_package(target)
        if here is None or there is None or here == there:
            continue
        if LAYERS[there] > LAYERS[here]:
            yield f"{place} imports {there} from layer {LAYERS[there]}, above {LAYERS[here]}"
        if LAYERS[there] == LAYERS[here]:
            yield f"{place}: {here} imports its neighbour {there}"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_down_only(path: Path) -> None:
    if module_name(path) == "lola_ds":
        return  # the package's front door opens `build` lazily
    assert not list(faults(path))


def test_every_module_has_a_layer() -> None:
    names = {module_name(path) for path in sources()} - {"lola_ds"}
    assert not {name for name in names if layer_package(name) is None}


def test_the_drawing_shows_the_layers() -> None:
    """docs/architecture.md draws every package in its layer, the highest first."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^ *(\d+) │ (.+?) *│", text, re.MULTILINE)
    drawn = {name: int(layer) for layer, names in rows for name in names.split()}
    expected = {name.removeprefix("lola_ds."): layer for name, layer in LAYERS.items()}
    assert drawn == expected
    order = [int(layer) for layer, _ in rows]
    assert order == sorted(order, reverse=True)


def test_a_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "lola_ds" / "nn" / "bad.py"
    bad.parent.mkdir(parents=True)
    bad.write_text("from ..train import loop\nimport deepspeed\nfrom lola_ds.fields import x\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert len(list(faults(bad))) == 2
