"""Composing configurations by Hydra, and reading and writing them as YAML.

Hydra and OmegaConf are imported by the functions that need them: reading the configuration of a
trained model takes PyYAML alone.

Hydra refuses overrides of keys that do not exist, the schema values of the wrong type, `check`
combinations that cannot work. Every refusal names the key, the value and the fix.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lola_ds.atomic_io import write_atomic
from lola_ds.config.check import check, check_submission
from lola_ds.config.overrides import explain_unknown
from lola_ds.config.renamed import refuse_renamed, translate_renamed
from lola_ds.config.schema import Config, Submission
from lola_ds.config.setting import list_keys


def config_folder(name: str = "configs") -> Path:
    """The folder of the YAML files (`configs`) or DeepSpeed JSON files (`ds_configs`).

    Raises:
        FileNotFoundError: The installation is incomplete.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / f"_{name}"
    folder = installed if installed.is_dir() else package.parent / name
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: the installation of lola_ds is incomplete")
    return folder


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Composes `configs/train.yaml` with overrides: plain dictionaries, lists and scalars.

    Raises:
        ValueError: a key that does not exist, an option that does not exist, a value of the wrong
            type, a missing value, or a combination that cannot work.
    """
    config = _compose("train", Config, overrides)
    check(config)
    return config


def compose_submission(overrides: Sequence[str]) -> dict[str, Any]:
    """Composes `configs/submit.yaml` with overrides of `cluster`, `compute` and `pipeline`.

    Raises:
        ValueError: a key or option that does not exist, or a value that cannot be.
    """
    config = _compose("submit", Submission, overrides)
    check_submission(config)
    return config


def expand_sweep(words: Sequence[str]) -> list[list[str]]:
    """The points of a sweep: `["a=1,2", "b=3"]` -> `[["a=1", "b=3"], ["a=2", "b=3"]]`.

    Commas in quotes and brackets separate nothing, as in Hydra.

    Raises:
        ValueError: a word that is not an override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    choices: list[list[str]] = []
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
            if override.is_sweep_override():
                key = override.get_key_element()
                choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            else:
                choices.append([word])
        except HydraException as error:
            raise ValueError(_explain(error)) from error
    return [list(point) for point in itertools.product(*choices)]


def _compose(root: str, schema: type, overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    known = [*_known_keys(), "variant"]
    for override in overrides:
        key, _, text = override.lstrip("+~").partition("=")
        refuse_renamed(key, text, known)
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = hydra_compose(root, overrides=list(overrides))
        return _plain(OmegaConf.merge(OmegaConf.structured(schema), composed))
    except MissingMandatoryValue as error:
        key = error.full_key or str(error)
        raise ValueError(f"{key} is not set; add {key}=… to the command") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_explain(error)) from error


def compose_group(group: str, name: str) -> dict[str, Any]:
    """One option of one group as a dictionary: `compose_group("dataset", "euler_open")`.

    Raises:
        ValueError: there is no such option; the message lists those that exist.
    """
    from omegaconf import OmegaConf

    folder = config_folder() / group
    file = folder / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ValueError(f"{group}={name} does not exist; known: {known}")
    return _plain(OmegaConf.load(file))


def find_dataset(physics: Sequence[str]) -> dict[str, Any] | None:
    """The option of the group `dataset` that is made of these physics, if there is one."""
    for file in sorted((config_folder() / "dataset").glob("*.yaml")):
        dataset = compose_group("dataset", file.stem)
        if sorted(dataset["physics"]) == sorted(physics):
            return dataset
    return None


def load_config(path: Path) -> dict[str, Any]:
    """Reads the `config.yaml` of a run or converted folder, old keys by their new names.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: The file is not YAML.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: not a run folder or a converted model")
    try:
        text = path.read_text()
        if "${" in text:  # runs of the published code refer from key to key
            from omegaconf import OmegaConf

            config = _plain(OmegaConf.create(text))
        else:
            config = yaml.safe_load(text)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no configuration")
    plain = {str(key): value for key, value in config.items()}
    translate_renamed(plain)
    return plain


def save_config(config: dict[str, Any], path: Path) -> None:
    """Writes a configuration atomically."""
    from omegaconf import OmegaConf

    write_atomic(path, OmegaConf.to_yaml(OmegaConf.create(config)))


def _plain(config: Any) -> dict[str, Any]:
    """An OmegaConf container as plain dictionaries, lists and scalars; no value is missing."""
    from omegaconf import OmegaConf

    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


_NOISE = (
    "full_key",
    "object_type",
    "reference",
    "Config search",
    "provider=",
    "To append",
    "See http",
)


def _explain(error: Exception) -> str:
    """Hydra's and OmegaConf's messages in one line, with the key and the nearest known one."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(_NOISE)]
    key = getattr(error, "full_key", None)
    if key and key not in " ".join(lines[:1]):
        lines.insert(0, f"{key}:")
    mistyped = re.search(r"Could not override '([^']+)'", lines[0])
    if mistyped:
        lines = [explain_unknown(mistyped[1], _known_keys())]
    return " ".join(dict.fromkeys(lines))


def _known_keys() -> list[str]:
    """Every key of a training and of a submission, with dots."""
    return [*list_keys(Config), *list_keys(Submission)]
