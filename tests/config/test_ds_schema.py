"""DeepSpeed files: what is written stays, what is missing is filled, mistakes are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lola_ds.config import compose, config_folder, fill_deepspeed, read_deepspeed
from lola_ds.config.ds_schema import complete_deepspeed

NVME = {"device": "nvme"}
FILES = sorted(config_folder("ds_configs").glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_our_files_write_only_what_they_change(file: Path) -> None:
    given = json.loads(file.read_text())
    assert set(given) == {"zero_optimization"}
    zero = given["zero_optimization"]
    defaults = complete_deepspeed({"zero_optimization": {"stage": zero["stage"]}}, "x.json")
    for key in zero.keys() - {"stage"}:
        assert defaults["zero_optimization"][key] != zero[key]


@pytest.mark.parametrize("stage", range(4))
def test_what_is_left_out_is_filled(stage: int) -> None:
    complete = complete_deepspeed({"zero_optimization": {"stage": stage}}, "x.json")
    assert complete_deepspeed(complete, "x.json") == complete
    assert complete == read_deepspeed(f"zero{stage}.json")
    assert complete["train_batch_size"] == "auto"
    assert complete["comms_logger"]["prof_all"] is True
    assert ("offload_optimizer" in complete["zero_optimization"]) == (stage > 0)
    assert ("offload_param" in complete["zero_optimization"]) == (stage == 3)


def test_what_is_written_stays() -> None:
    given = {
        "steps_per_print": 10,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e7, "overlap_comm": True},
    }
    complete = complete_deepspeed(given, "x.json")
    assert complete["steps_per_print"] == 10
    assert complete["zero_optimization"]["overlap_comm"] is True
    assert complete["zero_optimization"]["reduce_bucket_size"] == 50_000_000
    assert isinstance(complete["zero_optimization"]["reduce_bucket_size"], int)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "zero_optimization.stage=None does not exist; choose 0 to 3"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage=4 does not exist"),
        ({"zero_optimization": True}, "zero_optimization=True should be an object"),
        ({"gradient_cliping": 1.0}, "gradient_cliping is unknown (did you mean gradient_clipping?"),
        ({"fp16": {"enable": False}}, "fp16.enable is unknown (did you mean enabled?)"),
        ({"bf16": {"enabled": True}}, "bf16.enabled=true would cast parameters"),
        ({"bf16": {"enabled": "false"}}, "bf16.enabled='false' should be true or false"),
        ({"steps_per_print": []}, "steps_per_print=[] should be null, a number or text"),
        ({"train_batch_size": "many"}, "train_batch_size='many' should be a number or \"auto\""),
        ({"optimizer": {"type": "Adam"}}, "optimizer is not used by this runtime: optim=…"),
        ({"activation_checkpointing": {}}, "activation_checkpointing is not used by this runtime"),
        ({"data_type": {}}, "data_type is unknown"),
        ({"compile": {}}, "compile is not used by this runtime: use compile=true"),
        ({"comms_logger": 1}, "comms_logger=1 should be an object"),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_sise": 1}},
            "zero_optimization.reduce_bucket_sise is unknown (did you mean reduce_bucket_size?)",
        ),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1.5}},
            "zero_optimization.reduce_bucket_size=1.5 should be an integer",
        ),
        (
            {"zero_optimization": {"stage": 1, "stage3_max_live_parameters": 1}},
            "zero_optimization.stage3_max_live_parameters belongs to ZeRO stage 3, not to this one",
        ),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer belongs to ZeRO stage 1 or 2 or 3, not to this",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param belongs to ZeRO stage 3, not to this one",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "tape"}}},
            "zero_optimization.offload_optimizer.device='tape' should be one of none, cpu, nvme",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"nvme_path": "/nvme"}}},
            "zero_optimization.offload_param.nvme_path is not used by this runtime: it says where",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            "zero_optimization.offload_optimizer.device=nvme belongs to ZeRO stage 3, not to 2",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.device=nvme without the larger states",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": NVME | {"buffer_count": 4}}},
            "zero_optimization.offload_optimizer.buffer_count is not used by this runtime: the",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": NVME | {"nvme_path": 1}}},
            'zero_optimization.offload_optimizer.nvme_path=1 should be a folder or "auto"',
        ),
        (
            {"aio": {"block_size": 1}},
            "aio is not used by this runtime: the operating system buffers",
        ),
        ({"communication_data_type": "fp8"}, "communication_data_type='fp8' should be one of fp32"),
    ],
)
def test_mistakes_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    given = {"zero_optimization": {"stage": 1}, **given} if given else given
    with pytest.raises(ValueError, match=f"^mine.json: {re.escape(message)}"):
        complete_deepspeed(given, "mine.json")


def test_auto_entries_come_from_the_configuration() -> None:
    words = "task=surrogate run=r data=d train.batch_size=32 train.accumulation=4 optim.grad_clip=2"
    filled = fill_deepspeed(compose(words.split()), world_size=2)
    assert filled["train_batch_size"] == 32
    assert filled["train_micro_batch_size_per_gpu"] == 4
    assert filled["gradient_accumulation_steps"] == 4
    assert filled["gradient_clipping"] == 2.0
    assert '"auto"' not in json.dumps(filled)


def test_drive_has_one_folder_named_in_either_place(tmp_path: Path) -> None:
    words = "task=surrogate run=r data=d deepspeed=zero3_nvme".split()
    with pytest.raises(ValueError, match=r"needs one folder on it.*add deepspeed.nvme_path=FOLDER"):
        fill_deepspeed(compose(words), world_size=1)
    filled = fill_deepspeed(compose([*words, "deepspeed.nvme_path=/mine"]), world_size=1)
    for section in ("offload_optimizer", "offload_param"):
        assert filled["zero_optimization"][section]["nvme_path"] == "/mine"
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(filled))
    words = ["task=surrogate", "run=r", "data=d", f"deepspeed.config={file}"]
    assert fill_deepspeed(compose(words), world_size=1) == filled
    with pytest.raises(ValueError, match=r"needs one folder on it, .* not \['/mine', '/other'\]"):
        fill_deepspeed(compose([*words, "deepspeed.nvme_path=/other"]), world_size=1)
    words = ["task=surrogate", "run=r", "data=d", "deepspeed=zero2_offload"]
    with pytest.raises(ValueError, match=r"zero2_offload.json, which offloads nothing to a drive"):
        fill_deepspeed(compose([*words, "deepspeed.nvme_path=/x"]), world_size=1)


def test_ranks_that_share_samples_do_not_share_the_batch() -> None:
    words = "task=surrogate run=r data=d train.batch_size=32 sequence_parallel=2".split()
    filled = fill_deepspeed(compose(words), world_size=4)
    assert filled["train_micro_batch_size_per_gpu"] == 16
    assert filled["sequence_parallel_size"] == 2
    with pytest.raises(ValueError, match="3 ranks were started; start a multiple of 2"):
        fill_deepspeed(compose(words), world_size=3)


def test_filled_file_can_be_given_again(tmp_path: Path) -> None:
    words = "task=surrogate run=r data=d train.batch_size=32 sequence_parallel=2".split()
    filled = fill_deepspeed(compose(words), world_size=4)
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(filled))
    again = [*words, f"deepspeed.config={file}"]
    assert fill_deepspeed(compose(again), world_size=4) == filled
    with pytest.raises(ValueError, match="sequence_parallel_size=2 contradicts 4 of the Hydra"):
        fill_deepspeed(compose([*again, "sequence_parallel=4"]), world_size=4)
