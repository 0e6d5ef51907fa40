"""Compiles the module `_lola_ds` (see `lola_ds/data/native`) whenever the package is installed.

One object for every width of vectors; which one runs is decided where it runs.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = "-O3 -std=gnu11 -ffp-contract=off -fPIC -fvisibility=hidden".split()
FLAGS += "-Wall -Wextra".split()
LEVELS = {"baseline": ()}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS |= {"avx2": ("-mavx2",), "avx512": ("-mavx512f",)}
UNRESOLVED = ("-undefined", "dynamic_lookup") if platform.system() == "Darwin" else ()


class CompileReader(BuildHookInterface):
    """Adds the module to a wheel, or to the environment of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles, before the wheel is put together."""
        library = compile_reader(Path(self.root, "lola_ds/data/native"), Path(self.root, "build"))
        build_data["pure_python"], build_data["infer_tag"] = False, True
        for files in ("force_include", "force_include_editable"):
            build_data.setdefault(files, {})[str(library)] = library.name


def compile_reader(sources: Path, target: Path) -> Path:
    """Compiles the sources into the folder `target`; returns the library.

    Raises:
        RuntimeError: there is no compiler, or it fails; holds what it said.
    """
    target.mkdir(exist_ok=True)
    objects = []
    for level, vectors in LEVELS.items():
        for name in ("frames", "xxh3"):
            objects.append(target / f"{name}_{level}.o")
            source = sources / f"{name}.c"
            _compile(*FLAGS, *vectors, f"-DLEVEL={level}", "-c", source, "-o", objects[-1])
    library = target / "_lola_ds.abi3.so"
    include = f"-I{sysconfig.get_path('include')}"
    shared = ("-shared", *UNRESOLVED, "-o", library)
    others = [sources / f"{name}.c" for name in ("module", "mapping", "moments", "plan_reads")]
    _compile(*FLAGS, include, *shared, *others, *objects)
    return library


def _compile(*words: str | Path) -> None:
    command = [*shlex.split(os.environ.get("CC", "cc")), *map(str, words)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError(f"lola_ds needs a C compiler: no '{command[0]}' here; set CC") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{shlex.join(command)}\n{error.stderr}") from None
