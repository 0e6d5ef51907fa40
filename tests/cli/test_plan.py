"""`lola-ds plan`: what it prints follows from the configuration, with neither data nor a GPU."""

from __future__ import annotations

import json

import pytest

from lola_ds.cli.plan import main

OFFLOADED = {"zero1_offload", "zero2_offload", "zero3_offload", "zero3_nvme"}
SMALL = ["surrogate.hid_channels=32", "surrogate.hid_blocks=2", "surrogate.patch_size=[1,8,8]"]


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    main(["task=surrogate", "--json", *SMALL, *words])
    return json.loads(capsys.readouterr().out)


def test_small_network_needs_nothing_special(capsys: pytest.CaptureFixture[str]) -> None:
    report = plan(capsys, "--grid", "64x64", "train.batch_size=32")
    assert set(report["activation_bytes_per_sample"]) == {"none", "selective", "2", "full"}
    assert len(report["memory"]) == 4 * 8
    assert {row["deepspeed"] for row in report["memory"] if row["nvme"]} == {"zero3_nvme"}
    assert {row["deepspeed"] for row in report["memory"] if row["host"]} == OFFLOADED
    (chosen,) = (row for row in report["scaling"] if row["world_size"] == 8)
    assert (chosen["policy"], chosen["micro_batch"], chosen["accumulation"]) == ("none", 4, 1)
    assert [row["world_size"] for row in report["scaling"]] == [1, 2, 4, 8, 16, 32]
    assert report["steps"] == 100 * 4096 // 32


def test_latents_are_those_of_the_autoencoder(capsys: pytest.CaptureFixture[str]) -> None:
    """64×64 fields become 8×8 latents: an eighth of the grid, and patches of one token."""
    fields = plan(capsys, "--grid", "64x64")
    small = ["surrogate.patch_size=[1,1,1]"]
    latents = plan(capsys, "--grid", "64x64", "ae_run=does/not/exist/yet", *small)
    assert latents["flops_per_sample"] == pytest.approx(fields["flops_per_sample"], rel=0.5)
    assert latents["parameters"] < fields["parameters"]


def test_sharing_tokens_divides_activations_and_work(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--grid", "64x64", "surrogate.hid_channels=256"]
    alone = plan(capsys, *words)
    shared = plan(capsys, *words, "sequence_parallel=4")
    assert shared["flops_per_sample"] == pytest.approx(alone["flops_per_sample"], rel=0.02)
    held, divided = (report["activation_bytes_per_sample"]["none"] for report in (alone, shared))
    assert held / 4 < divided < held / 2
    assert shared["parameters"] == alone["parameters"]
    assert [row["world_size"] for row in shared["scaling"]] == [4, 8, 16, 32, 64, 128, 256]


def test_report_for_people_ends_with_the_words_to_add(capsys: pytest.CaptureFixture[str]) -> None:
    main(["task=surrogate", *SMALL, "--grid", "64x64", "gpus=4"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("network       surrogate, frames of 5×64×64")
    assert lines[-1].startswith("for 4 GPUs: deepspeed=zero")
    assert lines[-1].endswith("surrogate.checkpointing=none")


def test_nodes_are_joined_by_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    (one,) = (row for row in plan(capsys, "--grid", "64x64")["scaling"] if row["world_size"] == 8)
    report = plan(capsys, "--grid", "64x64", "nodes=2", "gpus=4", "--network", "ethernet25")
    (two,) = (row for row in report["scaling"] if row["world_size"] == 8)
    assert report["gpus"] == 8
    assert two["seconds"] > one["seconds"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "add --grid 512x512"),
        (["--grid", "64"], "axes x×y of dataset=euler_periodic"),
        (["--grid", "64x64", "sequence_parallel=3"], "sequence_parallel=3 does not divide gpus=8"),
        (["gpus=0"], "gpus=0 must be at least 1"),
        (["--grid", "64xwide"], "--grid 64xwide: expected points along each axis"),
    ],
)
def test_mistakes_are_explained(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["task=surrogate", *words])


def test_only_what_training_accepts_is_weighed(capsys: pytest.CaptureFixture[str]) -> None:
    report = plan(capsys, "--grid", "64x64", "compile=true", "optim=soap")
    assert {row["policy"] for row in report["memory"]} == {"none", "2", "full"}
    assert {row["deepspeed"] for row in report["memory"]} == {"zero0"}
