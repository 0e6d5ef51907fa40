"""Configurations that cannot work are refused, by key, value and fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from words import overrides

from lola_ds.cli import train
from lola_ds.cli.common import run_command


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which `lola-ds train` refuses a configuration, in this process."""
    with pytest.raises(SystemExit) as end:
        run_command(train.main, ["--print-config", *words])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["deepspeed=zero7"], ["deepspeed/zero7", "zero0 zero1 zero1_offload zero2"]),
        (["train.epoch=3"], ["train.epoch", "train.epochs"]),
        (["train.epochs=many"], ["train.epochs", "many"]),
        (["train.batch_size=6"], ["train.epoch_size=40", "train.batch_size=6"]),
        (["train.accumulation=3"], ["train.batch_size=8", "train.accumulation=3", "multiple of 3"]),
        (["task=painting"], ["task=painting", "autoencoder, surrogate, diffusion"]),
        (["precision=fp8"], ["precision=fp8", "auto, bf16, fp16, fp32"]),
        (["ae_run=somewhere"], ["ae_run=somewhere", "autoencoder"]),
        (["optim.learning_rate=-1"], ["optim.learning_rate=-1", "positive"]),
        (["deepspeed.config=missing.json"], ["missing.json", "zero1.json"]),
        (["dataset.fields=[a,b]"], ["dataset.stats.mean", "5 values for 2"]),
        (["optim=soap"], ["optim=soap steps whole tensors", "stage 1", "deepspeed=zero0"]),
        (["optim=muon", "deepspeed=zero2_offload"], ["optim=muon", "stage 2", "deepspeed=zero0"]),
    ],
)
def test_configuration_is_refused(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal([*overrides("autoencoder", Path("d"), Path("r")), *words], capsys)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("{", ["not valid JSON", "line 1"]),
        ('{"zero_optimization": {"stage": 5}}', ["zero_optimization.stage=5", "0 to 3"]),
        (
            '{"zero_optimization": {"stage": 2, "overlap_com": true}}',
            ["zero_optimization.overlap_com is unknown", "overlap_comm"],
        ),
        (
            '{"train_batch_size": 64, "zero_optimization": {"stage": 1}}',
            ["train_batch_size=64 contradicts 8", '"auto"'],
        ),
        (
            '{"gradient_clipping": 0.5, "zero_optimization": {"stage": 1}}',
            ["gradient_clipping=0.5 contradicts 1.0"],
        ),
        (
            '{"fp16": {"enabled": true}, "zero_optimization": {"stage": 1}}',
            ["fp16.enabled=true", "precision=fp16"],
        ),
    ],
)
def test_deepspeed_file_is_refused(
    file: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(file)
    words = overrides("autoencoder", Path("d"), Path("r"), f"deepspeed.config={path}")
    line = refusal(words, capsys)
    for part in ("mine.json", *parts):
        assert part in line


def test_batch_that_does_not_divide_over_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    line = refusal(overrides("autoencoder", Path("d"), Path("r")), capsys)
    for part in ("train.batch_size=8", "3 ranks", "multiple of 3"):
        assert part in line


def test_print_config_shows_every_filled_value(capsys: pytest.CaptureFixture[str]) -> None:
    words = overrides("autoencoder", Path("d"), Path("r"), "deepspeed=zero2_offload")
    run_command(train.main, ["--print-config", *words])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["deepspeed"]["train_micro_batch_size_per_gpu"] == 8
    assert shown["deepspeed"]["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert shown["precision"] == "fp32"
    assert '"auto"' not in json.dumps(shown["deepspeed"])
