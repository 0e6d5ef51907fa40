"""Checkpoints: complete or absent, verified on load, independent of ZeRO stage and world size.

A checkpoint is a folder `step_N` with one safetensors file per rank, `state.json` (progress) and
`manifest.json` (size and XXH3-64 of every file). A rank's file holds its fragments
(`lola_ds.train.fragments`) as flat float32 runs under `kind/name`, where `kind` is `weight`, `ema`
or an optimizer state such as `exp_avg`; whoever needs a parameter, or any run of it, reads it from
the files that hold it. So a run resumes at any stage and world size, and export needs neither
DeepSpeed nor a process group. The states of optimizers of whole tensors, which have shapes and
types of their own, lie with their owner as `state/name/i`; the header says how they fit together.

The set is atomic over all ranks: everything is written and flushed to a temporary folder, every
rank's digest is gathered, and one rename makes the folder visible. `latest` only names the newest
for people and tools; loading looks at the folders themselves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed as dist
import xxhash
from safetensors.torch import save_file
from torch import Tensor, nn

from ..durable import flush, write_atomic
from .ema import Ema
from .fragments import Fragment
from .optim import WholeTensorOptimizer
from .optim.packing import pack, unpack

_HEADER, _OPTIMIZER, _STATES = "fragments", "optimizer", "states"


class CheckpointError(ValueError):
    """A checkpoint that is damaged or does not fit the model."""


@dataclass(frozen=True)
class _Run:
    """A contiguous run of one flattened tensor and the file that holds it."""

    start: int
    numel: int
    file: Path


class CheckpointReader:
    """Reads parameters, averages and optimizer states of one checkpoint folder.

    Raises:
        CheckpointError: a file is missing or unreadable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, Any] = _read_json(folder / "state.json")
        self.manifest: dict[str, Any] = _read_json(folder / "manifest.json")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._runs: dict[str, list[_Run]] = {}
        self._files: dict[Path, Any] = {}
        self.kinds: set[str] = set()
        self.optimizer = "adamw"
        self._states: dict[str, tuple[Path, Any]] = {}
        for name in sorted(self.manifest["files"]):
            if name.endswith(".safetensors"):
                self._index(folder / name)

    def _index(self, path: Path) -> None:
        try:
            file = safetensors.safe_open(path, framework="pt")
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        self._files[path] = file
        metadata = file.metadata()
        header = json.loads(metadata[_HEADER])
        self.optimizer = metadata.get(_OPTIMIZER, self.optimizer)
        states = json.loads(metadata.get(_STATES, "{}"))
        self._states |= {name: (path, state) for name, state in states.items()}
        self.kinds.update(key.partition("/")[0] for key in file.keys())  # noqa: SIM118
        for name, (shape, start, numel) in header.items():
            self.shapes[name] = tuple(shape)
            self._runs.setdefault(name, []).append(_Run(start, numel, path))

    def verify(self, files: Sequence[str] | None = None) -> None:
        """Compares the files (all by default) with the manifest.

        Raises:
            CheckpointError: names the file whose size or checksum differs.
        """
        for name in self.manifest["files"] if files is None else files:
            expected = self.manifest["files"][name]
            path = self.folder / name
            if not path.is_file():
                raise CheckpointError(f"{path} is missing")
            if digest(path) != expected:
                raise CheckpointError(f"{path} is damaged: its size or checksum has changed")

    def read(self, kind: str, name: str, start: int = 0, numel: int | None = None) -> Tensor:
        """The elements `[start, start + numel)` of a flattened tensor: float32, shape (numel,)."""
        size = torch.Size(self.shapes[name]).numel()
        numel = size - start if numel is None else numel
        out = torch.empty(numel)
        filled = 0
        for run in self._runs[name]:
            low, high = max(start, run.start), min(start + numel, run.start + run.numel)
            if low < high:
                part = self._files[run.file].get_slice(f"{kind}/{name}")
                out[low - start : high - start] = part[low - run.start : high - run.start]
                filled += high - low
        if filled != numel:
            raise CheckpointError(f"{self.folder} holds only {filled} of {numel} values of {name}")
        return out

    def tensors(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Every parameter of `kind` in its shape, one after another."""
        for name, shape in self.shapes.items():
            yield name, self.read(kind, name).view(shape)

    def optimizer_state(self, name: str, device: torch.device) -> Any:
        """What an optimizer of whole tensors remembered of one parameter, as it was.

        Raises:
            CheckpointError: nothing was saved of it.
        """
        if name not in self._states:
            raise CheckpointError(f"{self.folder} holds no optimizer state of {name}")
        path, (structure, count) = self._states[name]
        keys = [_state_key(name, i) for i in range(count)]
        tensors = [self._files[path].get_tensor(key).to(device) for key in keys]
        return unpack(structure, tensors)

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The persistent buffers, which the first rank saved."""
        file = self._files[self.folder / _rank_file(0)]
        for key in file.keys():  # noqa: SIM118
            kind, _, name = key.partition("/")
            if kind == "buffer":
                yield name, file.get_tensor(key)


class CheckpointStore:
    """The checkpoints of one run.

    Arguments:
        folder: `RUN/checkpoints`.
        keep: how many of the newest to keep.
        rank: this rank.
        world_size: the number of ranks. All methods are collective when it is above 1.
    """

    def __init__(self, folder: Path, keep: int = 2, rank: int = 0, world_size: int = 1) -> None:
        self.folder = folder
        self.keep = keep
        self.rank = rank
        self.world_size = world_size

    def save(
        self,
        step: int,
        module: nn.Module,
        fragments: Sequence[Fragment],
        optimizer: torch.optim.Optimizer,
        ema: Ema,
        state: Mapping[str, Any],
    ) -> Path:
        """Writes `step_N` and removes the oldest. Collective.

        Raises:
            OSError: on every rank, if any rank could not write; no trace of the attempt remains
                under the final name.
        """
        final = self.folder / f"step_{step:08d}"
        staging = self.folder / f".{final.name}.partial"
        self._on_first_rank(lambda: _fresh_folder(staging))
        path = staging / _rank_file(self.rank)
        tensors = _rank_tensors(fragments, optimizer, ema)
        if self.rank == 0:
            tensors |= {f"buffer/{n}": b.detach().cpu().clone() for n, b in _buffers(module)}
        states, more = _rank_states(fragments, optimizer)
        tensors |= more
        metadata = {
            _HEADER: json.dumps({f.name: (f.shape, f.start, f.numel) for f in fragments}),
            _OPTIMIZER: _optimizer_name(optimizer),
            _STATES: json.dumps(states),
        }

        def write() -> dict[str, Any]:
            save_file(tensors, path, metadata=metadata)
            flush(path)
            return digest(path)

        digests = self._gather(write)

        def publish() -> None:
            files = {_rank_file(rank): value for rank, value in enumerate(digests)}
            _write_json(staging / "state.json", dict(state))
            files["state.json"] = digest(staging / "state.json")
            _write_json(staging / "manifest.json", {"world_size": self.world_size, "files": files})
            _publish(staging, final)
            write_atomic(self.folder.parent / "latest", f"checkpoints/{final.name}\n".encode())
            self._prune()

        self._on_first_rank(publish)
        return final

    def newest(self) -> CheckpointReader | None:
        """The newest checkpoint that verifies, or None. Collective; ranks share the reading.

        A damaged one is skipped with a message that names the file.
        """
        for folder in reversed(list_checkpoints(self.folder)):

            def check(folder: Path = folder) -> CheckpointReader | str:
                try:
                    reader = CheckpointReader(folder)
                    reader.verify(sorted(reader.manifest["files"])[self.rank :: self.world_size])
                except CheckpointError as error:
                    return str(error)
                return reader

            reader = check()
            fault = reader if isinstance(reader, str) else ""
            faults = [f for f in self._gather(lambda fault=fault: fault) if f]
            if isinstance(reader, CheckpointReader) and not faults:
                return reader
            if self.rank == 0:
                print(f"lola-ds: {faults[0]}; falling back to the checkpoint before", flush=True)
        return None

    def _prune(self) -> None:
        for old in list_checkpoints(self.folder)[: -self.keep]:
            doomed = old.with_name(f".{old.name}.old")  # never half a checkpoint under its name
            old.rename(doomed)
            shutil.rmtree(doomed)

    def _gather(self, action: Any) -> list[Any]:
        """Runs `action` on every rank and returns all results; one failure fails all ranks."""
        try:
            outcome: tuple[Any, str] = (action(), "")
        except Exception as error:
            outcome = (None, f"rank {self.rank}: {error}")
        if self.world_size == 1:
            outcomes = [outcome]
        else:
            outcomes = [(None, "")] * self.world_size
            dist.all_gather_object(outcomes, outcome)
        faults = [fault for _, fault in outcomes if fault]
        if faults:
            raise OSError(f"{self.folder}: the checkpoint could not be written ({faults[0]})")
        return [value for value, _ in outcomes]

    def _on_first_rank(self, action: Any) -> None:
        self._gather(action if self.rank == 0 else lambda: None)


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step_*")) if folder.is_dir() else []


def load_weights(module: nn.Module, reader: CheckpointReader, kind: str = "weight") -> None:
    """Copies parameters and buffers into `module`, strictly.

    Raises:
        CheckpointError: names and shapes differ: the checkpoint is of another architecture.
    """
    expected = {n: tuple(p.shape) for n, p in module.named_parameters() if p.requires_grad}
    explain_mismatch(str(reader.folder), reader.shapes, expected)
    state = dict(reader.tensors(kind)) | dict(reader.buffers())
    module.load_state_dict(state, strict=False)


def explain_mismatch(
    source: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuses weights whose names or shapes differ from the model's.

    Raises:
        CheckpointError: gives the first difference of each kind.
    """
    faults = []
    if missing := sorted(set(expected) - set(found)):
        faults.append(f"{len(missing)} parameters are missing, such as {missing[0]}")
    if extra := sorted(set(found) - set(expected)):
        faults.append(f"{len(extra)} are unknown, such as {extra[0]}")
    shared = sorted(set(found) & set(expected))
    if wrong := [n for n in shared if tuple(found[n]) != tuple(expected[n])]:
        name = wrong[0]
        faults.append(
            f"{len(wrong)} have another shape, such as {name}: {tuple(found[name])} instead of "
            f"{tuple(expected[name])}"
        )
    if faults:
        raise CheckpointError(
            f"{source} is of another architecture: {'; '.join(faults)}; "
            "use another run folder or the configuration it was trained with"
        )


@torch.no_grad()
def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    fragments: Sequence[Fragment],
    reader: CheckpointReader,
    step: int,
) -> None:
    """Sets the optimizer's state and step count from a checkpoint.

    Arguments:
        optimizer: the torch optimizer of the engine.
        fragments: the resident ones (`resident_fragments`).
        reader: the checkpoint.
        step: optimizer steps done.

    Raises:
        CheckpointError: another optimizer wrote the checkpoint.
    """
    if reader.optimizer != _optimizer_name(optimizer):
        raise CheckpointError(
            f"{reader.folder} was written with optim={reader.optimizer}, not "
            f"{_optimizer_name(optimizer)}; go on with optim={reader.optimizer}, or start a new "
            "run from these weights with fork.run=…"
        )
    if isinstance(optimizer, WholeTensorOptimizer):
        for f in fragments:
            optimizer.load_state_tree(f.flat, reader.optimizer_state(f.name, f.flat.device))
        optimizer.steps = step
        optimizer.publish()
        return
    kinds = sorted(reader.kinds - {"weight", "ema", "buffer"})
    for flat in {id(f.flat): f.flat for f in fragments}.values():
        state = optimizer.state[flat]
        state["step"] = torch.tensor(float(step), device=flat.device if flat.is_cuda else "cpu")
        for kind in kinds:
            state[kind] = torch.zeros_like(flat, memory_format=torch.preserve_format)
    for fragment in fragments:
        for kind in kinds:
            value = reader.read(kind, fragment.name, fragment.start, fragment.numel)
            fragment.view(optimizer.state[fragment.flat][kind]).copy_(value)


@torch.no_grad()
def restore_ema(ema: Ema, reader: CheckpointReader) -> None:
    """Sets this rank's part of the average from a checkpoint."""
    for fragment in ema.fragments:
        value = reader.read("ema", fragment.name, fragment.start, fragment.numel)
        ema.values[fragment.name].copy_(value)


def digest(path: Path) -> dict[str, Any]:
    """Size and XXH3-64 of a file."""
    hasher = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
    return {"bytes": path.stat().st_size, "xxh3": hasher.hexdigest()}


def _rank_tensors(
    fragments: Sequence[Fragment], optimizer: torch.optim.Optimizer, ema: Ema
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for f in fragments:
        tensors[f"weight/{f.name}"] = f.master
        tensors[f"ema/{f.name}"] = ema.values[f.name]
        if isinstance(optimizer, WholeTensorOptimizer):
            continue
        for kind, value in optimizer.state[f.flat].items():
            if isinstance(value, Tensor) and value.numel() == f.flat.numel() and kind != "step":
                tensors[f"{kind}/{f.name}"] = f.view(value)
    return {key: value.float().cpu().clone() for key, value in tensors.items()}


def _rank_states(
    fragments: Sequence[Fragment], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The states of whole tensors: how each fits together, of how many tensors; and the tensors."""
    states: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    if isinstance(optimizer, WholeTensorOptimizer):
        for f in fragments:
            structure, parts = pack(optimizer.state_tree(f.flat))
            states[f.name] = structure, len(parts)
            for i, part in enumerate(parts):
                tensors[_state_key(f.name, i)] = part.detach().cpu().clone().contiguous()
    return states, tensors


def _state_key(name: str, i: int) -> str:
    return f"state/{name}/{i}"


def _optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    if isinstance(optimizer, WholeTensorOptimizer):
        return optimizer.name
    return type(optimizer).__name__.lower()


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    saved = module.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in module.named_buffers() if name in saved)


def _rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def _fresh_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def _publish(staging: Path, final: Path) -> None:
    """Makes the finished folder visible in one rename; a damaged namesake steps aside first."""
    flush(staging)
    if final.exists():
        aside = final.with_name(f".{final.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
        staging.rename(final)
        shutil.rmtree(aside)
    else:
        staging.rename(final)
    flush(final.parent)
