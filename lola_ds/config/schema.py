"""The schema of the configuration: every key, its type and its default.

Groups (`dataset`, `ae`, `surrogate`, `denoiser`, …) and keys carry lola's names. The networks' own
keys are checked by their factories.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lola_ds.config.setting import MISSING, setting

TASKS = {"autoencoder": "ae", "surrogate": "surrogate", "diffusion": "denoiser"}
"""Each task and the configuration group of its network."""

OPTIMIZERS = ("adamw", "soap", "psgd", "muon", "schedule_free")
SCHEDULERS = ("cosine", "linear", "exponential", "constant")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
DEVICES = ("auto", "cpu", "cuda")
SPLITS = ("train", "valid", "test")


@dataclass
class Stats:
    mean: list[float] = MISSING
    std: list[float] = MISSING


@dataclass
class Dataset:
    name: str = MISSING
    physics: list[str] = MISSING
    dimensions: list[str] = MISSING
    fields: list[str] = MISSING
    stats: Stats = field(default_factory=Stats)
    include_filters: list[str] = field(default_factory=list)
    periodic: Any = False  # or one flag for each of the dimensions
    transform: dict[int, str] = field(default_factory=dict)
    scalars: list[str] = field(default_factory=list)
    log_scalars: list[str] = field(default_factory=list)
    augment: list[str] = field(default_factory=list)
    gravity: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


@dataclass
class Optim:
    optimizer: str = setting("adamw", choices=OPTIMIZERS)
    learning_rate: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    momentum: float = 0.95
    precondition_beta: float = 0.999
    precondition_frequency: int = 16
    precondition_dim: int = 4096
    weight_decay: float = 0.0
    warmup: int = 0
    scheduler: str = setting("cosine", choices=SCHEDULERS)
    grad_clip: float = 1.0


@dataclass
class Context:
    law: str = setting("poisson_truncated", choices=("poisson_truncated", "poisson_mod"))
    rate: float = 2.0
    atleast: int = 1
    rho: float = 1.0


@dataclass
class Trajectory:
    length: int = setting(5, least=1)
    stride: int = setting(4, least=1)
    context: Context = field(default_factory=Context)


@dataclass
class DeepSpeed:
    config: str = "zero1.json"
    nvme_path: str | None = None


@dataclass
class Train:
    epochs: int = setting(100, least=1)
    epoch_size: int = setting(4096, least=1)
    batch_size: int = setting(64, least=1)
    accumulation: int = setting(1, least=1)
    workers: int = 2
    log_every: int = setting(10, least=1)
    max_trajectories: int | None = setting(None, least=1)
    shuffle_bytes: int | None = setting(None, least=1)
    quarantine: bool = False
    verify_reads: bool = False


@dataclass
class Valid:
    samples: int = setting(256, least=1)
    batch_size: int = setting(64, least=1)


@dataclass
class Ema:
    decay: Any = 0.999
    power_law: list[float] = field(default_factory=list)
    keep_every: int | None = None


@dataclass
class Watch:
    patience: int = 3
    spike: float | None = None
    timeout: float = 1800.0


@dataclass
class Profile:
    steps: str | None = None


@dataclass
class Checkpoint:
    every: int = setting(1, least=1)
    keep: int = setting(2, least=1)
    best: str | None = "valid/loss"
    asynchronous: bool = True


@dataclass
class Fork:
    run: str | None = None
    strict: bool = True
    freeze: str | None = setting(None, choices=("encoder", "decoder"))


@dataclass
class Wandb:
    mode: str = setting("offline", choices=("offline", "online", "disabled"))
    project: str = "lola_ds"
    entity: str | None = None


@dataclass
class Config:
    """The whole training configuration. The networks' own keys are checked by their factories."""

    task: str = setting(choices=TASKS)
    run: str = MISSING
    data: str = MISSING
    ae_run: str | None = None
    seed: int = 0
    device: str = setting("auto", choices=DEVICES)
    precision: str = setting("auto", choices=PRECISIONS)
    tf32: bool = True
    deterministic: bool = False
    kernels: str = setting("auto", choices=("auto", "torch", "triton"))
    compile: bool = False
    sequence_parallel: int = setting(1, least=1)
    dataset: Dataset = field(default_factory=Dataset)
    ae: dict[str, Any] = field(default_factory=dict)
    surrogate: dict[str, Any] = field(default_factory=dict)
    denoiser: dict[str, Any] = field(default_factory=dict)
    optim: Optim = field(default_factory=Optim)
    trajectory: Trajectory = field(default_factory=Trajectory)
    deepspeed: DeepSpeed = field(default_factory=DeepSpeed)
    train: Train = field(default_factory=Train)
    valid: Valid = field(default_factory=Valid)
    ema: Ema = field(default_factory=Ema)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    watch: Watch = field(default_factory=Watch)
    profile: Profile = field(default_factory=Profile)
    fork: Fork = field(default_factory=Fork)
    wandb: Wandb = field(default_factory=Wandb)
    tensorboard: bool = False


@dataclass
class Cluster:
    """Where jobs run; the keys are explained in `configs/cluster/default.yaml`."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gpu_request: str = setting("gpus-per-node", choices=("gpus-per-node", "gres", "none"))
    gpu_type: str | None = None
    cpus_per_gpu: int = setting(8, least=1)
    memory: str | None = None
    time: str = "24:00:00"
    signal: str = setting("USR2", choices=("USR1", "USR2", "TERM"))
    warning: int = setting(120, least=1)
    retries: int = 3
    modules: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    interface: str | None = None
    container: str | None = setting(None, choices=("apptainer", "pyxis"))
    image: str | None = None
    mounts: list[str] = field(default_factory=list)
    python: str | None = None
    runs: str | None = None
    data: str | None = None
    cache: str = "/tmp"
    at_once: int | None = setting(None, least=1)
    options: list[str] = field(default_factory=list)


@dataclass
class Compute:
    nodes: int = setting(1, least=1)
    gpus: int = setting(1, least=1)


@dataclass
class Submission:
    """The configuration of `lola-ds submit`, beside the job's own overrides."""

    cluster: Cluster = field(default_factory=Cluster)
    compute: Compute = field(default_factory=Compute)
    pipeline: dict[str, Any] = field(default_factory=dict)
