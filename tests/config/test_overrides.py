"""Overrides of the commands without Hydra: types, defaults, refusals, renamed keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from words import overrides

from lola_ds.config import compose, load_config, parse_overrides, save_config, setting
from lola_ds.config.renamed import RENAMED, refuse_renamed


@dataclass
class Example:
    out: str = setting()
    split: str | None = setting(None, choices=("train", "valid"))
    batch_size: int = setting(16, least=1)
    rate: float = 1.0
    figures: bool = True
    starts: list[int] = field(default_factory=lambda: [0])
    gammas: list[float] | None = None


def test_values_have_the_types_of_the_schema() -> None:
    given = ["out=7", "rate=1e-3", "figures=false", "starts=0,8", "gammas=1.3,2", "split=train"]
    values = parse_overrides(Example, given)
    assert values == Example("7", "train", 16, 1e-3, False, [0, 8], [1.3, 2.0])
    assert parse_overrides(Example, ["out=a", "gammas=null"]) == Example("a")


@pytest.mark.parametrize("text", ["{a}", "a: b", "#1", "null", "[1,2]", "mmps:every=8", "a,b"])
def test_texts_are_taken_as_they_are(text: str) -> None:
    assert parse_overrides(Example, [f"out={text}"]).out == text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("splitt=train", r"unknown key 'splitt' \(did you mean split\?\)"),
        ("colour=red", "--help lists the keys"),
        ("split=test", "split=test is unknown; choose one of train, valid"),
        ("batch_size=0", "batch_size=0 must be at least 1"),
        ("batch_size=1.5", "batch_size=1.5: expected an integer"),
        ("rate=fast", "rate=fast: expected a number"),
        ("figures=some", "figures=some: expected true or false"),
        ("starts=0,", "starts=0,: expected an integer, or several between commas"),
        ("gammas=air", "gammas=air: expected a number, or several between commas or null"),
        ("figures", "'figures' is not of the form key=value"),
        ("split=", "split= has no value"),
        ("out=${nowhere}", "nowhere"),
        ("batch=8", "batch=8: the key has a new name; write batch_size=8"),
    ],
)
def test_mistakes_are_explained_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_overrides(Example, ["out=a", override])
    assert "\n" not in str(caught.value)


def test_required_keys_are_asked_for() -> None:
    with pytest.raises(ValueError, match="missing out=…"):
        parse_overrides(Example, [])


@pytest.mark.parametrize("override", ["flavour=lola", "train.restrict=2", "+train.recheck=true"])
def test_old_keys_of_a_training_are_refused(override: str) -> None:
    key, _, value = override.lstrip("+").partition("=")
    with pytest.raises(ValueError, match=f"write {RENAMED[key]}={value}"):
        compose([*overrides("autoencoder", Path("d"), Path("r")), override])


def test_old_keys_of_other_commands_are_unknown() -> None:
    refuse_renamed("label_weight", "2", ["batch_size"])
    with pytest.raises(ValueError, match="unknown key 'label_weight'"):
        parse_overrides(Example, ["label_weight=2"])


def test_configurations_of_old_runs_are_translated(tmp_path: Path) -> None:
    config = compose(overrides("autoencoder", Path("d"), Path("r")))
    old = {**config, "train": dict(config["train"])}
    del old["train"]["max_trajectories"], old["train"]["verify_reads"]
    old["train"] |= {"restrict": 3, "recheck": True}
    save_config(old, tmp_path / "config.yaml")
    expected = {**config["train"], "max_trajectories": 3, "verify_reads": True}
    assert load_config(tmp_path / "config.yaml") == {**config, "train": expected}
