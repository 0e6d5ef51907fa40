"""Trainings from configurations, at the step of their newest checkpoint."""

from __future__ import annotations

import json
import platform
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lola_ds.build.data import make_prepare, open_split
from lola_ds.build.load import load_weights_of
from lola_ds.build.networks import build_model, complete_network, count_tokens
from lola_ds.build.objective import build_objective
from lola_ds.config import fill_deepspeed, save_config, split_batch, uses_cpu_adam
from lola_ds.data import (
    Batch,
    ElasticSampler,
    ShardDataset,
    build_loader,
    evaluation_batches,
    make_order,
)
from lola_ds.distributed import Ranks, gather_objects
from lola_ds.kernels import set_kernel_mode
from lola_ds.log import logger
from lola_ds.nn.compilation import compile_blocks
from lola_ds.nn.sequence_parallel import new_sequence_group, parallelize_sequence
from lola_ds.objectives import Objective
from lola_ds.train.anomaly import AnomalyDetector, AnomalyLocator
from lola_ds.train.checkpoint.store import CheckpointStore
from lola_ds.train.checkpoint.training_state import (
    load_weights,
    restore_ema,
    restore_optimizer,
)
from lola_ds.train.ema import Ema
from lola_ds.train.ema_profiles import make_profiles
from lola_ds.train.init_from import init_from
from lola_ds.train.loop import Trainer, TrainingSchedule, Watch
from lola_ds.train.numerics import choose_precision, set_numerics
from lola_ds.train.optim import make_optimizer, make_schedule
from lola_ds.train.profiling import Profiler, parse_window
from lola_ds.train.stop import StopRequest
from lola_ds.train.throughput import Throughput
from lola_ds.train.tracking import Tracker
from lola_ds.train.watchdog import Watchdog
from lola_ds.train.zero import Engine, LossScale, NvmeStore, nvme_bytes, open_nvme_store

__all__ = ["build_training", "make_loader", "make_training_schedule"]

CountFlops = Callable[[dict[str, Any], Sequence[int], int], float]
"""From a configuration, the shape of a frame and the size of labels to the FLOPs of a sample."""


def build_training(
    config: dict[str, Any],
    ranks: Ranks,
    stop: StopRequest | None = None,
    count_flops: CountFlops | None = None,
) -> Trainer:
    """Builds a training at the step of its newest checkpoint.

    Arguments:
        config: The composed configuration.
        ranks: This process among its peers.
        stop: Tells when this process is asked to stop early.
        count_flops: Counts the work of a sample, for the throughput that the first rank records.
            By default, only samples per second are recorded.

    Raises:
        ValueError: A configuration, data or checkpoint does not fit.
        OSError: A folder or file is missing.
    """
    ds_config = fill_deepspeed(config, ranks.world_size)
    windows, valid = open_split(config, "train"), open_split(config, "valid")
    config = complete_network(config, windows.shape, windows.labels.shape[1])
    config["precision"] = choose_precision(config["precision"], ranks.device)
    objective = _make_objective(config, windows, ranks)

    schedule, nvme = make_training_schedule(config), open_nvme_store(ds_config)
    store = _open_store(config, schedule, nvme, ranks)
    reader = store.newest()
    state = reader.state if reader else {}
    step = state.get("step", 0)
    if reader is not None:
        load_weights(objective, reader)
    elif config["fork"]["run"] is not None:
        _init_from(objective.model, config, ranks)
    if step == 0 or step < schedule.total_steps:
        _write_run_folder(config, ds_config, ranks)

    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = make_optimizer(
        trained,
        config["optim"],
        seed=config["seed"],
        rank=ranks.rank,
        world_size=ranks.world_size,
        on_cpu=uses_cpu_adam(ds_config),
    )
    if nvme is not None:
        _check_room(nvme, trained, config, ds_config, ranks)
    gathered = compile_blocks(objective) if config["compile"] else ()
    engine = Engine(objective, optimizer, ds_config, gathered, nvme)
    partitions = engine.local_partitions()
    ema = Ema(partitions, make_profiles(config["ema"]), nvme)
    readers = _readers(config, ranks)
    loader = make_loader(config, windows, readers)
    if reader is not None:
        updates = state.get("updates", step)
        restore_optimizer(engine.optimizer, engine.resident_partitions(), reader, updates, nvme)
        restore_ema(ema, reader)
        loader.load_state_dict(state["loader"])
    return Trainer(
        engine=engine,
        ranks=ranks,
        partitions=partitions,
        ema=ema,
        loader=loader,
        valid=_validation(config, valid, readers),
        prepare=make_prepare(config),
        learning_rate=make_schedule(config["optim"], schedule.total_steps),
        store=store,
        tracker=_make_tracker(config, schedule, step, ranks),
        schedule=schedule,
        watch=_make_watch(config, windows, ranks, state.get("guard"), count_flops),
        scale=LossScale(config["precision"] == "fp16", state.get("scale")),
        step=step,
        stop=stop,
    )


def make_training_schedule(config: dict[str, Any]) -> TrainingSchedule:
    """Returns the lengths and intervals of a training in optimizer steps."""
    train = config["train"]
    epoch = train["epoch_size"] // train["batch_size"]
    return TrainingSchedule(
        total_steps=train["epochs"] * epoch,
        epoch_steps=epoch,
        batch_size=train["batch_size"],
        accumulation=train["accumulation"],
        save_every=config["checkpoint"]["every"] * epoch,
        log_every=train["log_every"],
        seed=config["seed"],
    )


def _make_objective(config: dict[str, Any], windows: ShardDataset, ranks: Ranks) -> Objective:
    """The objective on this rank's device, with the same initial weights on all ranks."""
    set_kernel_mode(config["kernels"])
    set_numerics(tf32=config["tf32"], deterministic=config["deterministic"])
    torch.manual_seed(config["seed"])
    objective = build_objective(config, build_model(config)).to(ranks.device)
    group = new_sequence_group(config["sequence_parallel"])
    parallelize_sequence(objective, group)
    group.check_tokens(count_tokens(config, windows.shape))
    return objective


def _open_store(
    config: dict[str, Any], schedule: TrainingSchedule, nvme: NvmeStore | None, ranks: Ranks
) -> CheckpointStore:
    kept = config["ema"]["keep_every"]
    return CheckpointStore(
        Path(config["run"]) / "checkpoints",
        config["checkpoint"]["keep"],
        ranks.rank,
        ranks.world_size,
        asynchronous=config["checkpoint"]["asynchronous"],
        best=config["checkpoint"]["best"],
        thin=None if kept is None else kept * schedule.epoch_steps,
        nvme=nvme,
    )


def _check_room(
    nvme: NvmeStore,
    trained: Sequence[Tensor],
    config: dict[str, Any],
    ds_config: dict[str, Any],
    ranks: Ranks,
) -> None:
    """Refuses a drive too small for what the ranks of this machine put there."""
    size, averages = sum(p.numel() for p in trained), len(make_profiles(config["ema"]))
    bytes_ = nvme_bytes(size, ds_config["zero_optimization"], ranks.world_size, averages)
    nvme.check_room(bytes_ * gather_objects(socket.gethostname()).count(socket.gethostname()))


def _init_from(model: nn.Module, config: dict[str, Any], ranks: Ranks) -> None:
    """Copies another model's weights; `fork.txt` lists them."""
    source = config["fork"]["run"]
    report = init_from(model, load_weights_of(Path(source)), source, config["fork"]["strict"])
    if ranks.rank == 0:
        logger.info(f"fork.run={report.summary()}")
        Path(config["run"]).mkdir(parents=True, exist_ok=True)
        (Path(config["run"]) / "fork.txt").write_text(report.report())


def _readers(config: dict[str, Any], ranks: Ranks) -> Ranks:
    """This rank among those that read different windows; a sequence group reads the same."""
    shards = config["sequence_parallel"]
    return replace(ranks, rank=ranks.rank // shards, world_size=ranks.world_size // shards)


def make_loader(config: dict[str, Any], windows: ShardDataset, ranks: Ranks) -> Any:
    """Makes the loader of training batches.

    Arguments:
        config: The composed configuration.
        windows: The windows of the training split.
        ranks: This rank among those that read different windows.
    """
    sampler = ElasticSampler(
        len(windows),
        global_batch=config["train"]["batch_size"],
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config["seed"],
        order=make_order(
            windows,
            config["seed"],
            shuffle_bytes=config["train"]["shuffle_bytes"],
            weights=config["dataset"].get("weights", ()),
        ),
    )
    return build_loader(
        windows,
        sampler,
        micro_batch=split_batch(config, ranks.world_size),
        augment=config["dataset"]["augment"] if config["ae_run"] is None else (),
        workers=config["train"]["workers"],
        pin_memory=ranks.device.type == "cuda",
        seed=config["seed"],
        quarantine=config["train"]["quarantine"],
    )


def _validation(config: dict[str, Any], windows: ShardDataset, ranks: Ranks) -> list[Batch]:
    """The same windows, spread evenly over the split, with the same seeds at every epoch."""
    count = min(len(windows), config["valid"]["samples"])
    chosen = torch.linspace(0, len(windows) - 1, count, dtype=torch.float64).round().long().tolist()
    batches = evaluation_batches(
        windows,
        max(1, config["valid"]["batch_size"] // ranks.world_size),
        ranks.rank,
        ranks.world_size,
        windows=chosen,
        seed=config["seed"],
    )
    return list(batches)


def _make_watch(
    config: dict[str, Any],
    windows: ShardDataset,
    ranks: Ranks,
    detector: dict[str, Any] | None,
    count_flops: CountFlops | None,
) -> Watch:
    """What observes the training. Only the first rank, which records, counts FLOPs."""
    watch, flops = config["watch"], 0.0
    if count_flops is not None and ranks.rank == 0:
        flops = count_flops(config, windows.shape, windows.labels.shape[1])
    return Watch(
        detector=AnomalyDetector(watch["patience"], watch["spike"], detector),
        locator=AnomalyLocator(ranks.rank, config["dataset"]["fields"]),
        throughput=Throughput(
            ranks.device, ranks.world_size, flops, count_tokens(config, windows.shape)
        ),
        watchdog=Watchdog(watch["timeout"]),
        profiler=Profiler(
            parse_window(config["profile"]["steps"]), Path(config["run"]) / "profile", ranks.rank
        ),
    )


def _make_tracker(
    config: dict[str, Any], schedule: TrainingSchedule, step: int, ranks: Ranks
) -> Tracker:
    total = schedule.total_steps * schedule.batch_size
    done = step * schedule.batch_size
    return Tracker(Path(config["run"]), config, total, done, step, enabled=ranks.rank == 0)


def _write_run_folder(config: dict[str, Any], ds_config: dict[str, Any], ranks: Ranks) -> None:
    if ranks.rank == 0:
        run = Path(config["run"])
        run.mkdir(parents=True, exist_ok=True)
        save_config(config, run / "config.yaml")
        (run / "ds_config.json").write_text(json.dumps(ds_config, indent=2) + "\n")
        (run / "environment.txt").write_text(_environment(ranks))


def _environment(ranks: Ranks) -> str:
    packages = ("torch", "deepspeed", "webdataset", "azula", "triton", "lola_ds")
    lines = [f"python {platform.python_version()}", f"machine {platform.platform()}"]
    lines += [f"{name} {version(name)}" for name in packages]
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    lines += [f"device {device}", f"world_size {ranks.world_size}"]
    return "\n".join(lines) + "\n"
