"""From configuration to objects: the only place where names in YAML become classes."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import (
    TASKS,
    fill_deepspeed,
    load_config,
    save_config,
    split_batch,
    uses_cpu_adam,
)
from .data import Batch, ElasticSampler, ShardDataset, build_loader, evaluation_batches, make_order
from .emulate.emulator import Emulator
from .fields import Standardize
from .kernels import set_kernels
from .models import make_autoencoder, make_denoiser, make_surrogate
from .models.lola import STATE, read_state
from .nn.compiling import compile_blocks
from .nn.layers import per_axis, periodic_axes
from .nn.sequence import SequenceGroup, divide_tokens, join_sequence_group
from .objectives import AutoencoderObjective, DiffusionObjective, Objective, SurrogateObjective
from .train.checkpoint import explain_mismatch, load_weights, restore_ema, restore_optimizer
from .train.cost import PassCost, build_fake, trace_pass
from .train.drive import drive_bytes, open_drive
from .train.ema import Ema, make_profiles
from .train.engine import (
    Ranks,
    choose_precision,
    gather_over_ranks,
    make_engine,
    set_numerics,
)
from .train.export import find_checkpoint, model_weights, read_weights
from .train.fragments import local_fragments, resident_fragments, torch_optimizer
from .train.graft import graft
from .train.guard import Guard, Witness
from .train.loop import Plan, Trainer, Watch
from .train.meter import Meter
from .train.optim import make_optimizer, make_schedule
from .train.profiling import Profiler, parse_window
from .train.scaling import LossScale
from .train.stop import StopRequest
from .train.store import CheckpointStore
from .train.tracking import Tracker
from .train.watchdog import Watchdog

WEIGHTS = "model.safetensors"
AUTOENCODER = "autoencoder"


# Data


def open_split(config: dict[str, Any], split: str) -> ShardDataset:
    """The windows of one split: `data/<physics>/<split>` of every physics of the dataset.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: the shards are of another kind, or have other channels, than the task needs.
    """
    root, dataset = Path(config["data"]), config["dataset"]
    folders = [root / physics / split for physics in dataset["physics"]]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} does not exist; data={root} must hold <physics>/<split> as "
                "`lola-ds shard` and `lola-ds encode` write them"
            )
    pixels = config["task"] == "autoencoder"
    windows = ShardDataset(
        folders,
        length=1 if pixels else config["trajectory"]["length"],
        stride=1 if pixels else config["trajectory"]["stride"],
        restrict=config["train"]["restrict"] if split == "train" else None,
        recheck=config["train"]["recheck"],
    )
    _check_kind(config, windows)
    return windows


def _check_kind(config: dict[str, Any], windows: ShardDataset) -> None:
    latents = config["ae_run"] is not None
    if (windows.kind == "latents") != latents:
        fix = (
            "give latent shards (`lola-ds encode`)"
            if latents
            else "add ae_run=… (the autoencoder's run), or give shards of fields"
        )
        raise ValueError(f"data={config['data']} holds {windows.kind}; {fix}")
    channels, fields = windows.shape[0], config["dataset"]["fields"]
    if not latents and channels != len(fields):
        raise ValueError(
            f"data={config['data']} has {channels} channels ({', '.join(windows.fields)}), "
            f"dataset.fields has {len(fields)}; choose the dataset= the shards were made from"
        )


def make_prepare(config: dict[str, Any]) -> Callable[[Batch], Batch]:
    """From shard values to network inputs: transform, standardise, logarithms of labels."""
    standardize = make_standardize(config["dataset"]) if config["ae_run"] is None else None
    logs = label_logs(config["dataset"])

    def prepare(batch: Batch) -> Batch:
        x = batch.x if standardize is None else standardize.to(batch.x.device)(batch.x)
        return replace(batch, x=x, label=log_label(batch.label, logs))

    return prepare


def make_standardize(dataset: dict[str, Any]) -> Standardize:
    """The dataset's transform and standardisation."""
    stats = dataset["stats"]
    return Standardize(stats["mean"], stats["std"], dataset["transform"])


def label_logs(dataset: dict[str, Any]) -> list[int]:
    """The positions in the label of the scalars whose logarithm the networks see.

    Raises:
        ValueError: `dataset.log_scalars` names a scalar that `dataset.scalars` does not.
    """
    for name in dataset["log_scalars"]:
        if name not in dataset["scalars"]:
            raise ValueError(
                f"dataset.log_scalars names {name}, which is not in "
                f"dataset.scalars={dataset['scalars']}"
            )
    return [dataset["scalars"].index(name) for name in dataset["log_scalars"]]


def log_label(label: Tensor, logs: Sequence[int]) -> Tensor:
    """Replaces entries `logs` of a label (..., D) by their natural logarithm."""
    if not logs:
        return label
    label = label.clone()
    label[..., logs] = label[..., logs].log()
    return label


# Models


def complete_network(config: dict[str, Any], shape: Sequence[int], labels: int) -> dict[str, Any]:
    """The configuration with what the data decides: channels, axes, label size, periodicity.

    Arguments:
        config: the composed configuration.
        shape: the shape of a frame, (C, *S).
        labels: the number D of label features.
    """
    group = TASKS[config["task"]]
    channels, axes = shape[0], len(shape) - 1
    periodic = periodic_axes(config["dataset"]["periodic"], axes)
    network = dict(config[group])
    if group == "ae":
        network |= {"pix_channels": channels, "spatial": axes}
    else:  # time is the first axis of an emulator, and does not wrap unless told to
        network |= {"channels": channels, "spatial": axes + 1, "label_features": labels}
        periodic = (False, *periodic)
    if network.get("periodic") is None:
        network["periodic"] = list(periodic)
    unused = set(TASKS.values()) - {group}
    return {key: value for key, value in config.items() if key not in unused} | {group: network}


def build_model(config: dict[str, Any]) -> Any:
    """The network of a completed configuration.

    Raises:
        ValueError: an unknown or missing key of the network's group.
    """
    group = TASKS[config["task"]]
    make = {"ae": make_autoencoder, "surrogate": make_surrogate, "denoiser": make_denoiser}[group]
    try:
        return make(**config[group])
    except TypeError as error:
        raise ValueError(f"{group}: {error}") from error


def build_objective(config: dict[str, Any], model: Any) -> Objective:
    """What is minimised: the model and its loss."""
    precision = config["precision"]
    if config["task"] == "autoencoder":
        frozen = config["fork"]["freeze"]
        return AutoencoderObjective(
            model, **config["ae"]["loss"], precision=precision, freeze=frozen
        )
    context = config["trajectory"]["context"]
    if config["task"] == "surrogate":
        return SurrogateObjective(model, precision=precision, **context)
    return DiffusionObjective(model, precision=precision, **config["denoiser"]["loss"], **context)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """Loads a trained network for inference: eval mode, float32.

    Arguments:
        path: a converted folder (`model.safetensors`, `config.yaml`) or a run folder, whose newest
            checkpoint's averaged weights (EMA) are taken.
        device: where to put it.

    Returns:
        An `Autoencoder`, `Surrogate` or `Denoiser`.

    Raises:
        FileNotFoundError: the folder holds neither.
        ValueError: the weights do not fit the configuration beside them.
    """
    path = Path(path)
    model, state = build_model(load_config(path / "config.yaml")), load_weights_of(path)
    check_weights(str(path), state, model)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False).to(device)


def load_weights_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a model by name: of a converted folder, a run of lola, or a run's average.

    Raises:
        FileNotFoundError: the folder is none of them.
        ValueError: a file cannot be read.
    """
    if (path / WEIGHTS).is_file():
        return dict(read_weights(path / WEIGHTS))
    if (path / STATE).is_file():
        return read_state(path)
    return dict(model_weights(find_checkpoint(path)))


def check_weights(source: str, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuses tensors whose names or shapes are not the model's.

    Raises:
        CheckpointError: gives the first difference of each kind.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    explain_mismatch(source, {n: tuple(t.shape) for n, t in state.items()}, expected)


def load_emulator(
    path: str | Path,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    compiled: bool = False,
) -> Emulator:
    """Loads an emulator with its autoencoder and field statistics: physical units in and out.

    Arguments:
        path: a converted folder; emulators of latents hold their autoencoder in `autoencoder/`.
        device: where to put it.
        precision: `bf16` for speed; see `Emulator`.
        compiled: true for speed, once it has compiled; see `Emulator`.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: the folder holds an autoencoder only, or there is no such precision.
    """
    path = Path(path)
    config = load_config(path / "config.yaml")
    if config["task"] == "autoencoder":
        raise ValueError(f"{path} is an autoencoder, not an emulator; use load_model")
    autoencoder = None
    if config["ae_run"] is not None:
        autoencoder = load_model(autoencoder_folder(path, config), device)
    return Emulator(
        load_model(path, device),
        autoencoder=autoencoder,
        standardize=make_standardize(config["dataset"]),
        trajectory=config["trajectory"],
        label_log=label_logs(config["dataset"]),
        device=device,
        spatial=len(config["dataset"]["dimensions"]),
        fields=config["dataset"]["fields"],
        axes=config["dataset"]["dimensions"],
        precision=precision,
        compiled=compiled,
    )


def autoencoder_folder(path: Path, config: dict[str, Any]) -> Path:
    """The autoencoder of an emulator: in its own folder, else the run it was trained with.

    Raises:
        FileNotFoundError: neither exists.
    """
    for folder in (path / AUTOENCODER, Path(config["ae_run"])):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"the autoencoder of {path} is neither in {path / AUTOENCODER} nor at {config['ae_run']}"
    )


# Planning


def describe_frames(config: dict[str, Any], grid: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """The shape (C, *S) of the frames a training sees and its label size, without any data.

    Latents are those of the autoencoder at `ae_run`, or of the `ae` group if that does not exist
    yet.

    Arguments:
        config: the composed configuration.
        grid: the points of the physical grid along each axis.

    Raises:
        ValueError: the grid has not as many axes as the dataset.
    """
    dataset = config["dataset"]
    if len(grid) != len(dataset["dimensions"]):
        axes = "×".join(dataset["dimensions"])
        raise ValueError(
            f"a grid of {'x'.join(map(str, grid))} points has not the axes {axes} of "
            f"dataset={dataset['name']}"
        )
    shape, labels = (len(dataset["fields"]), *grid), len(dataset["scalars"]) + 2 * len(grid)
    if config["ae_run"] is None:
        return shape, labels
    file = Path(config["ae_run"]) / "config.yaml"
    network = complete_network({**config, "task": "autoencoder"}, shape, labels)
    if file.is_file():
        network = load_config(file)
    latent = build_fake(lambda: build_model(network).encode(torch.empty(1, *shape)))
    return tuple(latent.shape[1:]), labels


def trace_training(
    config: dict[str, Any], shape: Sequence[int], labels: int, samples: int
) -> PassCost:
    """The cost of a forward and backward pass over `samples` frames or windows.

    Arguments:
        config: the composed configuration.
        shape: the shape of a frame, (C, *S).
        labels: the number D of label features.
        samples: the micro-batch; of the ranks that share it, the cost of one.
    """
    config = complete_network(config, shape, labels)
    if config["precision"] == "auto":  # that of the GPUs a training is planned for
        config["precision"] = "bf16"
    length = 1 if config["task"] == "autoencoder" else config["trajectory"]["length"]
    objective, x = build_fake(
        lambda: (
            build_objective(config, build_model(config)),
            torch.empty(samples, shape[0], length, *shape[1:]),
        )
    )
    ids, ones = torch.arange(samples), torch.ones(samples)
    batch = Batch(x, torch.zeros(samples, labels), seed=ids, weight=ones, window=ids)
    divide_tokens(objective, SequenceGroup(config["sequence_parallel"]))
    return trace_pass(objective, batch)


# Training


def build_training(
    config: dict[str, Any], ranks: Ranks, stop: StopRequest | None = None
) -> Trainer:
    """Everything a run needs, at the step where its newest checkpoint left off.

    Arguments:
        config: the composed configuration as plain dictionaries.
        ranks: this process among its peers.
        stop: tells when this process is asked to stop early.

    Raises:
        ValueError: a configuration, data or checkpoint that does not fit.
        OSError: a missing folder or file.
    """
    ds_config = fill_deepspeed(config, ranks.world_size)
    windows, valid = open_split(config, "train"), open_split(config, "valid")
    config = complete_network(config, windows.shape, windows.labels.shape[1])
    config["precision"] = choose_precision(config["precision"], ranks.device)
    set_kernels(config["kernels"])
    set_numerics(tf32=config["tf32"], deterministic=config["deterministic"])
    torch.manual_seed(config["seed"])  # the same initial weights on every rank
    objective = build_objective(config, build_model(config)).to(ranks.device)
    group = join_sequence_group(config["sequence_parallel"])
    divide_tokens(objective, group)
    group.check(count_tokens(config, windows.shape))

    run, kept = Path(config["run"]), config["ema"]["keep_every"]
    drive = open_drive(ds_config)
    store = CheckpointStore(
        run / "checkpoints",
        config["checkpoint"]["keep"],
        ranks.rank,
        ranks.world_size,
        asynchronous=config["checkpoint"]["asynchronous"],
        best=config["checkpoint"]["best"],
        thin=None if kept is None else kept * epoch_steps(config),
        drive=drive,
    )
    reader = store.newest()
    step = reader.state["step"] if reader else 0
    if reader is not None:
        load_weights(objective, reader)
    elif config["fork"]["run"] is not None:
        _fork(objective.model, config, ranks)
    plan = make_plan(config)
    if step == 0 or step < plan.total_steps:
        _write_run_folder(run, config, ds_config, ranks)

    optimizer = make_optimizer(
        (p for p in objective.parameters() if p.requires_grad),
        config["optim"],
        seed=config["seed"],
        rank=ranks.rank,
        world_size=ranks.world_size,
        on_cpu=uses_cpu_adam(ds_config),
    )
    if drive is not None:
        size = sum(p.numel() for p in objective.parameters() if p.requires_grad)
        zero, averages = ds_config["zero_optimization"], len(make_profiles(config["ema"]))
        beside = gather_over_ranks(socket.gethostname()).count(socket.gethostname())
        drive.check_room(beside * drive_bytes(size, zero, ranks.world_size, averages))
    whole = compile_blocks(objective) if config["compile"] else ()
    engine = make_engine(objective, optimizer, ds_config, whole, drive)
    fragments = local_fragments(engine, ranks.rank, ranks.world_size)
    ema = Ema(fragments, make_profiles(config["ema"]), drive)
    readers = _readers(config, ranks)
    loader = _make_loader(config, windows, readers)
    if reader is not None:
        resident = resident_fragments(engine, ranks.rank, ranks.world_size)
        updates = reader.state.get("updates", step)
        restore_optimizer(torch_optimizer(engine), resident, reader, updates, drive)
        restore_ema(ema, reader)
        loader.load_state_dict(reader.state["loader"])
    return Trainer(
        engine=engine,
        ranks=ranks,
        fragments=fragments,
        ema=ema,
        loader=loader,
        valid=_validation(config, valid, readers),
        prepare=make_prepare(config),
        learning_rate=make_schedule(config["optim"], plan.total_steps),
        store=store,
        tracker=_make_tracker(config, plan, step, ranks),
        plan=plan,
        watch=_make_watch(config, windows, ranks, reader.state.get("guard") if reader else None),
        scale=LossScale(
            config["precision"] == "fp16", reader.state.get("scale") if reader else None
        ),
        step=step,
        stop=stop,
    )


def epoch_steps(config: dict[str, Any]) -> int:
    """Optimizer steps of an epoch."""
    return config["train"]["epoch_size"] // config["train"]["batch_size"]


def make_plan(config: dict[str, Any]) -> Plan:
    """Lengths and intervals in optimizer steps."""
    train, epoch = config["train"], epoch_steps(config)
    return Plan(
        total_steps=train["epochs"] * epoch,
        epoch_steps=epoch,
        batch_size=train["batch_size"],
        accumulation=train["accumulation"],
        save_every=config["checkpoint"]["every"] * epoch,
        log_every=train["log_every"],
        seed=config["seed"],
    )


def _fork(model: nn.Module, config: dict[str, Any], ranks: Ranks) -> None:
    """Starts from another model's weights, and says in the run folder which."""
    source = config["fork"]["run"]
    found = graft(model, load_weights_of(Path(source)), source, config["fork"]["strict"])
    if ranks.rank == 0:
        print(f"fork.run={found.summary()}", flush=True)
        Path(config["run"]).mkdir(parents=True, exist_ok=True)
        (Path(config["run"]) / "fork.txt").write_text(found.report())


def _readers(config: dict[str, Any], ranks: Ranks) -> Ranks:
    """This rank's place among those with other windows; a sequence group reads the same."""
    shards = config["sequence_parallel"]
    return replace(ranks, rank=ranks.rank // shards, world_size=ranks.world_size // shards)


def _make_loader(config: dict[str, Any], windows: ShardDataset, ranks: Ranks) -> Any:
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
    config: dict[str, Any], windows: ShardDataset, ranks: Ranks, guard: dict[str, Any] | None
) -> Watch:
    """What observes the training; the first rank, which records, also counts the network's work."""
    watch, flops = config["watch"], 0.0
    if ranks.rank == 0:
        network = {**config[TASKS[config["task"]]], "checkpointing": "none"}
        plain = {**config, TASKS[config["task"]]: network, "sequence_parallel": 1}
        flops = trace_training(plain, windows.shape, windows.labels.shape[1], samples=2).flops / 2
    return Watch(
        guard=Guard(watch["patience"], watch["spike"], guard),
        witness=Witness(ranks.rank, config["dataset"]["fields"]),
        meter=Meter(ranks.device, ranks.world_size, flops, count_tokens(config, windows.shape)),
        watchdog=Watchdog(watch["timeout"]),
        profiler=Profiler(
            parse_window(config["profile"]["steps"]), Path(config["run"]) / "profile", ranks.rank
        ),
    )


def count_tokens(config: dict[str, Any], shape: Sequence[int]) -> int:
    """Tokens of a sample: patches of a window, or of a state that enters an autoencoder."""
    patch = config[TASKS[config["task"]]].get("patch_size", 1)
    axes = shape[1:]
    if config["task"] != "autoencoder":
        axes = (config["trajectory"]["length"], *axes)
    return math.prod(axes) // math.prod(per_axis(patch, len(axes), "patch_size"))


def _make_tracker(config: dict[str, Any], plan: Plan, step: int, ranks: Ranks) -> Tracker:
    total = plan.total_steps * plan.batch_size
    done = step * plan.batch_size
    return Tracker(Path(config["run"]), config, total, done, step, enabled=ranks.rank == 0)


def _write_run_folder(
    run: Path, config: dict[str, Any], ds_config: dict[str, Any], ranks: Ranks
) -> None:
    if ranks.rank == 0:
        import json

        run.mkdir(parents=True, exist_ok=True)
        save_config(config, run / "config.yaml")
        (run / "ds_config.json").write_text(json.dumps(ds_config, indent=2) + "\n")
        (run / "environment.txt").write_text(_environment(ranks))


def _environment(ranks: Ranks) -> str:
    import platform
    from importlib.metadata import version

    packages = ("torch", "deepspeed", "webdataset", "azula", "triton", "lola_ds")
    lines = [f"python {platform.python_version()}", f"machine {platform.platform()}"]
    lines += [f"{name} {version(name)}" for name in packages]
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    lines += [f"device {device}", f"world_size {ranks.world_size}"]
    return "\n".join(lines) + "\n"
