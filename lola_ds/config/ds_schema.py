"""The schema of DeepSpeed's JSON: every key that this runtime knows, its type and its default.

DeepSpeed ignores mistyped keys at the top level silently, and its defaults change between versions.
Unknown keys are therefore refused, and every known key is written out before DeepSpeed sees it.
"""

from __future__ import annotations

import difflib
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

__all__ = ["complete_deepspeed"]

Auto = float | Literal["auto"]
Text = float | str | None


@dataclass
class Switch:
    enabled: bool = False


@dataclass
class FlopsProfiler:
    enabled: bool = False
    profile_step: int = 1
    module_depth: int = -1
    top_modules: int = 1
    detailed: bool = True
    output_file: Text = None


@dataclass
class CommsLogger:
    enabled: bool = False
    verbose: bool = False
    prof_all: bool = True
    debug: bool = False


@dataclass
class Offload:
    device: Literal["none", "cpu", "nvme"] = "none"
    pin_memory: bool = True


@dataclass
class NvmeParameters:
    device: Literal["nvme"] = "nvme"
    nvme_path: str = "auto"


@dataclass
class NvmeOptimizer(NvmeParameters):
    pipeline_read: bool = True
    pipeline_write: bool = True


@dataclass
class Zero0:
    stage: int = 0
    reduce_bucket_size: int = 50_000_000


@dataclass
class Partitioned(Zero0):
    contiguous_gradients: bool = True
    reduce_scatter: bool = True
    overlap_comm: bool = False
    ignore_unused_parameters: bool = True
    # The second class is that of sections whose device is nvme.
    offload_optimizer: Offload | NvmeOptimizer = field(default_factory=Offload)


@dataclass
class Zero12(Partitioned):
    allgather_partitions: bool = True
    allgather_bucket_size: int = 50_000_000
    use_multi_rank_bucket_allreduce: bool = True
    round_robin_gradients: bool = False


@dataclass
class Zero3(Partitioned):
    sub_group_size: int = 1_000_000_000
    stage3_prefetch_bucket_size: int = 50_000_000
    stage3_param_persistence_threshold: int = 100_000
    stage3_max_live_parameters: int = 1_000_000_000
    stage3_max_reuse_distance: int = 1_000_000_000
    stage3_module_granularity_threshold: int = 0
    stage3_use_all_reduce_for_fetch_params: bool = False
    stage3_allgather_sequential: bool = False
    zero_hpz_partition_size: int = 1
    memory_efficient_linear: bool = True
    enable_sanity_checks: bool = False
    offload_param: Offload | NvmeParameters = field(default_factory=Offload)


@dataclass
class DeepSpeedFile:
    """The top level, beside `zero_optimization`, whose keys depend on the stage."""

    train_batch_size: Auto = "auto"
    train_micro_batch_size_per_gpu: Auto = "auto"
    gradient_accumulation_steps: Auto = "auto"
    gradient_clipping: Auto = "auto"
    sequence_parallel_size: Auto = "auto"
    steps_per_print: Text = None
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    dump_state: bool = False
    disable_allgather: bool = False
    disable_python_gc: bool = False
    prescale_gradients: bool = False
    gradient_predivide_factor: float = 1.0
    zero_allow_untested_optimizer: bool = False
    zero_force_ds_cpu_optimizer: bool = True
    communication_data_type: Literal["fp32", "bf16", "fp16"] = "fp32"
    bf16: Switch = field(default_factory=Switch)
    fp16: Switch = field(default_factory=Switch)
    torch_autocast: Switch = field(default_factory=Switch)
    flops_profiler: FlopsProfiler = field(default_factory=FlopsProfiler)
    comms_logger: CommsLogger = field(default_factory=CommsLogger)


_STAGES: tuple[type[Zero0], ...] = (Zero0, Zero12, Zero12, Zero3)
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: 'a folder or "auto"',
    Auto: 'a number or "auto"',
    Text: "null, a number or text",
}
_BUFFERED = "the operating system buffers offloaded states in free memory"
_INSTEAD = {
    "optimizer": "optim=… of the Hydra configuration chooses the optimizer",
    "scheduler": "optim.scheduler=… of the Hydra configuration sets the learning rate",
    "activation_checkpointing": (
        "DeepSpeed's checkpointing compiles to nothing; set ae.checkpointing=…, "
        "surrogate.checkpointing=… or denoiser.checkpointing=… (none, selective, n, full, offload)"
    ),
    "amp": "use precision=bf16 or precision=fp16",
    "data_types": "gradients are accumulated in float32 already",
    "compile": "use compile=true",
    "checkpoint": "checkpoints have a format of their own, which any stage and world size resumes",
    "tensorboard": "use tensorboard=true of the Hydra configuration",
    "wandb": "use wandb.mode=… of the Hydra configuration",
    "csv_monitor": "metrics.jsonl holds all numbers",
    "elasticity": "every checkpoint resumes at any world size already",
    "nvme_path": 'it says where "device": "nvme" offloads to',
    "pipeline_read": 'it says how "device": "nvme" offloads',
    "pipeline_write": 'it says how "device": "nvme" offloads',
    "pin_memory": "states on NVMe cannot be pinned",
    "buffer_count": _BUFFERED,
    "buffer_size": _BUFFERED,
    "max_in_cpu": _BUFFERED,
    "aio": _BUFFERED,
    "ratio": "the optimizer's states are on the CPU or on the GPU, all of them",
    "super_offload": "use device=cpu",
    "zenflow": "it delays the updates of a part of the gradient",
    "zero_quantized_weights": "quantised weights would change the numbers",
    "zero_quantized_gradients": "quantised gradients would change the numbers",
}


def complete_deepspeed(given: dict[str, Any], source: str) -> dict[str, Any]:
    """Checks a DeepSpeed configuration and writes out every key.

    Arguments:
        given: The contents of a DeepSpeed JSON.
        source: Its name, for messages.

    Returns:
        The same values and the defaults of all that were left out.

    Raises:
        ValueError: A key is unknown, unsupported or mistyped, a value has the wrong type, or the
            stage is not one of 0 to 3.
    """
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ValueError(f"{source}: zero_optimization={zero} should be an object")
    stage = zero.get("stage")
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ValueError(f"{source}: zero_optimization.stage={stage} does not exist; choose 0 to 3")
    _check_nvme(zero, stage, source)
    rest = {key: value for key, value in given.items() if key != "zero_optimization"}
    complete = _complete(rest, DeepSpeedFile, source, "")
    for key in ("bf16", "fp16", "torch_autocast"):
        if complete[key]["enabled"]:
            raise ValueError(
                f"{source}: {key}.enabled=true would cast parameters that must stay float32; "
                f"set it to false and use precision={'fp16' if key == 'fp16' else 'bf16'}"
            )
    zero = _complete(zero, _STAGES[stage], source, "zero_optimization.")
    return {**complete, "zero_optimization": zero}


def _check_nvme(zero: dict[str, Any], stage: int, source: str) -> None:
    """Refuses to offload to NVMe what this runtime cannot."""
    sections = [key for key in ("offload_optimizer", "offload_param") if _is_nvme(zero.get(key))]
    if sections and stage != 3:
        raise ValueError(
            f"{source}: zero_optimization.{sections[0]}.device=nvme belongs to ZeRO stage "
            f"3, not to {stage}; use deepspeed=zero3_nvme, or device=cpu"
        )
    if sections == ["offload_param"]:
        raise ValueError(
            f"{source}: zero_optimization.offload_param.device=nvme without the larger states of "
            "the optimizer; set zero_optimization.offload_optimizer.device=nvme, too"
        )


def _is_nvme(section: Any) -> bool:
    return isinstance(section, dict) and section.get("device") == "nvme"


def _complete(given: dict[str, Any], schema: Any, source: str, prefix: str) -> dict[str, Any]:
    """The values of one object, with the defaults of the keys that are left out."""
    types = get_type_hints(schema)
    for key in given:
        if key not in types:
            raise ValueError(f"{source}: {prefix}{key} {_explain(key, list(types))}")
    complete = {}
    for entry in fields(schema):
        key, type_ = prefix + entry.name, types[entry.name]
        if entry.default is not MISSING:
            complete[entry.name] = _value(given.get(entry.name, entry.default), type_, source, key)
            continue
        section = given.get(entry.name, {})
        if not isinstance(section, dict):
            raise ValueError(f"{source}: {key}={section} should be an object")
        if not is_dataclass(type_):
            type_ = get_args(type_)[_is_nvme(section)]
        complete[entry.name] = _complete(section, type_, source, f"{key}.")
    return complete


def _value(value: Any, type_: Any, source: str, key: str) -> Any:
    """The value, if it has the type; numbers such as 5e7 count as integers."""
    if not _fits(value, type_):
        words = _WORDS.get(type_) or f"one of {', '.join(get_args(type_))}"
        raise ValueError(f"{source}: {key}={value!r} should be {words}")
    return int(value) if type_ is int else value


def _fits(value: Any, type_: Any) -> bool:
    if get_origin(type_) is Literal:
        return value in get_args(type_)
    if type_ not in (int, float):
        kinds = get_args(type_)
        return any(_fits(value, kind) for kind in kinds) if kinds else isinstance(value, type_)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (type_ is float or float(value).is_integer())


def _explain(key: str, known: list[str]) -> str:
    if key in _INSTEAD:
        return f"is not used by this runtime: {_INSTEAD[key]}"
    if stages := [str(stage) for stage in range(4) if key in get_type_hints(_STAGES[stage])]:
        return f"belongs to ZeRO stage {' or '.join(stages)}, not to this one; remove it"
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return f"is unknown ({hint}); DeepSpeed might ignore it silently"
