"""The keys of a DeepSpeed JSON that this runtime knows, with the values they have when left out.

DeepSpeed ignores mistyped keys at the top level without a word, and its defaults move between
versions. So every key is known here or refused, and every known one is written out before DeepSpeed
sees it. The files stay plain DeepSpeed files.
"""

from __future__ import annotations

import difflib
from typing import Any

_TOP: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": None,
    "wall_clock_breakdown": False,
    "memory_breakdown": False,
    "dump_state": False,
    "disable_allgather": False,
    "disable_python_gc": False,
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "zero_allow_untested_optimizer": False,
    "zero_force_ds_cpu_optimizer": True,
    "communication_data_type": "fp32",
    "bf16": {"enabled": False},
    "fp16": {"enabled": False},
    "torch_autocast": {"enabled": False},
    "flops_profiler": {
        "enabled": False,
        "profile_step": 1,
        "module_depth": -1,
        "top_modules": 1,
        "detailed": True,
        "output_file": None,
    },
    "comms_logger": {"enabled": False, "verbose": False, "prof_all": True, "debug": False},
}
_REDUCE = {
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 50_000_000,
    "overlap_comm": False,
    "ignore_unused_parameters": True,
}
_OFFLOAD = {"device": "none", "pin_memory": True}
_ON_DRIVE = {
    "offload_optimizer": {
        "device": "nvme",
        "nvme_path": "auto",
        "pipeline_read": True,
        "pipeline_write": True,
    },
    "offload_param": {"device": "nvme", "nvme_path": "auto"},
}
_STAGES: dict[int, dict[str, Any]] = {
    0: {"reduce_bucket_size": 50_000_000},
    1: {
        **_REDUCE,
        "allgather_partitions": True,
        "allgather_bucket_size": 50_000_000,
        "use_multi_rank_bucket_allreduce": True,
        "round_robin_gradients": False,
        "offload_optimizer": _OFFLOAD,
    },
    3: {
        **_REDUCE,
        "sub_group_size": 1_000_000_000,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": 100_000,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
        "stage3_module_granularity_threshold": 0,
        "stage3_use_all_reduce_for_fetch_params": False,
        "stage3_allgather_sequential": False,
        "zero_hpz_partition_size": 1,
        "memory_efficient_linear": True,
        "enable_sanity_checks": False,
        "offload_optimizer": _OFFLOAD,
        "offload_param": _OFFLOAD,
    },
}
_STAGES[2] = _STAGES[1]
_CHOICES = {"device": ("none", "cpu", "nvme"), "communication_data_type": ("fp32", "bf16", "fp16")}
_BUFFERED = "the operating system buffers what is on a drive, in the memory that is free"
_INSTEAD = {
    "optimizer": "optim=… of the Hydra configuration chooses the optimizer",
    "scheduler": "optim.scheduler=… of the Hydra configuration sets the learning rate",
    "activation_checkpointing": (
        "DeepSpeed's checkpointing compiles to nothing; set ae.checkpointing=…, "
        "surrogate.checkpointing=… or denoiser.checkpointing=… (none, selective, n, full, offload)"
    ),
    "amp": "use precision=bf16 or precision=fp16",
    "data_types": "gradients are accumulated in float32 already",
    "compile": "use compile=blocks",
    "checkpoint": "checkpoints are this runtime's own: any stage and world size resumes them",
    "tensorboard": "use tensorboard=true of the Hydra configuration",
    "wandb": "use wandb.mode=… of the Hydra configuration",
    "csv_monitor": "metrics.jsonl holds all numbers",
    "elasticity": "every checkpoint resumes at any world size already",
    "nvme_path": 'it says where "device": "nvme" offloads to',
    "pipeline_read": 'it says how "device": "nvme" offloads',
    "pipeline_write": 'it says how "device": "nvme" offloads',
    "pin_memory": "what lies on a drive cannot be pinned",
    "buffer_count": _BUFFERED,
    "buffer_size": _BUFFERED,
    "max_in_cpu": _BUFFERED,
    "aio": _BUFFERED,
    "ratio": "the optimizer's states lie on the CPU or on the GPU, all of them",
    "super_offload": "use device=cpu",
    "zenflow": "its updates come late, by part of the gradient",
    "zero_quantized_weights": "quantised weights would change the numbers",
    "zero_quantized_gradients": "quantised gradients would change the numbers",
}


def complete_deepspeed(given: dict[str, Any], source: str) -> dict[str, Any]:
    """Writes out every key of a DeepSpeed configuration.

    Arguments:
        given: the contents of a DeepSpeed JSON.
        source: its name, for messages.

    Returns:
        The same values and all that were left out, in the order of this file.

    Raises:
        ValueError: an unknown, unsupported or mistyped key, a value of the wrong type, or a stage
            other than 0 to 3.
    """
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ValueError(f"{source}: zero_optimization={zero} should be an object")
    stage = zero.get("stage")
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ValueError(f"{source}: zero_optimization.stage={stage} does not exist; choose 0 to 3")
    drives = _on_drive(zero, stage, source)
    known = {**_TOP, "zero_optimization": {"stage": 0, **_STAGES[stage], **drives}}
    complete = _complete(given, known, source, "")
    for key in ("bf16", "fp16", "torch_autocast"):
        if complete[key]["enabled"]:
            raise ValueError(
                f"{source}: {key}.enabled=true would cast parameters that must stay float32; "
                f"set it to false and use precision={'fp16' if key == 'fp16' else 'bf16'}"
            )
    return complete


def _on_drive(zero: dict[str, Any], stage: int, source: str) -> dict[str, Any]:
    """The sections that offload to a drive, with their keys."""
    drives = {
        key: section
        for key, section in _ON_DRIVE.items()
        if isinstance(zero.get(key), dict) and zero[key].get("device") == "nvme"
    }
    if drives and stage != 3:
        raise ValueError(
            f"{source}: zero_optimization.{next(iter(drives))}.device=nvme belongs to ZeRO stage "
            f"3, not to {stage}; use deepspeed=zero3_nvme, or device=cpu"
        )
    if "offload_param" in drives and "offload_optimizer" not in drives:
        raise ValueError(
            f"{source}: zero_optimization.offload_param.device=nvme without the larger states of "
            "the optimizer; set zero_optimization.offload_optimizer.device=nvme, too"
        )
    return drives


def _complete(
    given: dict[str, Any], known: dict[str, Any], source: str, prefix: str
) -> dict[str, Any]:
    for key in given:
        if key not in known:
            raise ValueError(f"{source}: {prefix}{key} {_explain(key, list(known))}")
    return {
        key: _value(given.get(key, default), default, source, prefix + key)
        for key, default in known.items()
    }


def _value(value: Any, default: Any, source: str, key: str) -> Any:
    """The value, checked to be of the default's kind; numbers such as 5e7 count as integers."""
    if isinstance(default, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{source}: {key}={value} should be an object")
        return _complete(value, default, source, f"{key}.")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key.endswith(".nvme_path"):
        fits, kind = isinstance(value, str), 'a folder or "auto"'
    elif isinstance(default, bool):
        fits, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, kind = number and float(value).is_integer(), "an integer"
        value = int(value) if fits else value
    elif isinstance(default, float):
        fits, kind = number, "a number"
    elif default == "auto":
        fits, kind = number or value == "auto", 'a number or "auto"'
    elif default is None:
        fits, kind = value is None or number or isinstance(value, str), "null, a number or text"
    else:
        choices = _CHOICES[key.rpartition(".")[2]]
        fits, kind = value in choices, f"one of {', '.join(choices)}"
    if not fits:
        raise ValueError(f"{source}: {key}={value!r} should be {kind}")
    return value


def _explain(key: str, known: list[str]) -> str:
    if key in _INSTEAD:
        return f"is not used by this runtime: {_INSTEAD[key]}"
    if stages := [str(stage) for stage, keys in sorted(_STAGES.items()) if key in keys]:
        return f"belongs to ZeRO stage {' or '.join(stages)}, not to this one; remove it"
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return f"is unknown ({hint}); DeepSpeed might ignore it silently"
