r"""Training steps and sampling: this project and the published recipe, in one run.

    python -m benchmarks.step [out=benchmarks/step.csv] [cases=demo] [batch_size=…] [rounds=10]
                              [threads=…] [weights=FOLDER] [compiled=true]

Both sides have the same weights, shapes, batches and optimizer, and take turns for `rounds` rounds.
The fastest round of each counts, as other processes can only slow it down; the median is given,
too.

`published` restates the recipe of the paper's code: float32 (TF32 matrix products on a GPU), the
module compiled as a whole, plain torch, rotations by complex numbers whose cosines and sines every
block computes again, convolutions padded by torch in its default memory format, torch's default
AdamW, azula's Adams–Bashforth sampler.
`ours` is what this project does: bfloat16 matrix products and attention around float32 streams
(where the device has them; column `precision`), compiled blocks (the whole network where a CPU
samples), in sampling the modulations of all blocks at once, fused operations (Triton on a GPU),
channels-last convolutions, fused AdamW, a sampler whose coefficients are computed once and whose
steps are one CUDA graph on a GPU. Where `published` recomputes every block in the backward pass, as
`pixel` does, ours keeps its activations.

Cases: `demo` (the demo's diffusion model, for a CPU); for a GPU `euler`, `rayleigh_benard`
(vit_large on latents), `pixel` (vit_pixel) and `autoencoder` (dcae_f32c64_large). Columns: samples
per second, milliseconds, floating-point operations per second, their share of 989 TFLOP/s (MFU of
an H100), peak memory of that side alone, the ratio to `published`, the relative difference to it
(of the loss of one batch, or of the frames sampled from the same noise), and the attention operator
that ran. Batches for which either side runs out of GPU memory are halved on both sides. With
`weights`, a folder of `lola-ds convert`, `demo` takes trained weights; otherwise all weights are
random and modulations are enlarged, so that blocks are far from the identity. `compiled=false`
compiles neither side, which only tests the benchmark.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from azula.sample import zABSampler
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import Timing, alternate, describe_machine, write_rows
from lola_ds import kernels, load_model
from lola_ds.config import compose, parse_overrides
from lola_ds.data import Batch
from lola_ds.emulate.cuda_graph import CudaGraphedSampling
from lola_ds.emulate.sampling import ConditionedDenoiser
from lola_ds.hardware import GPUS
from lola_ds.models import make_autoencoder, make_denoiser, make_surrogate
from lola_ds.nn import layers
from lola_ds.nn.attention import MultiheadSelfAttention
from lola_ds.nn.compilation import compile_blocks
from lola_ds.nn.inference import prepare_for_inference
from lola_ds.nn.layers import ChannelNorm, Conv2d
from lola_ds.nn.modulation import modulation
from lola_ds.nn.vit import ViT, ViTBlock
from lola_ds.objectives import AutoencoderObjective, DiffusionObjective, SurrogateObjective
from lola_ds.train.numerics import choose_precision

H100_PEAK = 1e12 * GPUS["h100"].peak
SAMPLER_STEPS = 16


@dataclass(frozen=True)
class Case:
    """One model on one shape.

    Attributes:
        words: The Hydra overrides that choose the model.
        shape: The shape of a sample, (C, L, *S).
        labels: The number of label features.
        batch: The samples per step and GPU.
        members: The number of windows sampled at once, or 0 for models that do not sample.
    """

    words: tuple[str, ...]
    shape: tuple[int, ...]
    labels: int
    batch: int
    members: int = 0

    @property
    def task(self) -> str:
        """The task, as configurations name it."""
        return self.words[0].partition("=")[2]


OBJECTIVES: dict[str, Any] = {
    "diffusion": DiffusionObjective,
    "surrogate": SurrogateObjective,
    "autoencoder": AutoencoderObjective,
}
CASES = {
    "demo": Case(("task=diffusion", "denoiser=vit_tiny"), (16, 5, 8, 8), 5, 16, 8),
    "euler": Case(("task=diffusion", "denoiser=vit_large"), (64, 5, 16, 16), 5, 32, 16),
    "rayleigh_benard": Case(("task=diffusion", "denoiser=vit_large"), (64, 5, 16, 4), 6, 128, 16),
    "pixel": Case(("task=surrogate", "surrogate=vit_pixel"), (5, 5, 512, 512), 5, 8),
    "autoencoder": Case(("task=autoencoder", "ae=dcae_f32c64_large"), (5, 1, 512, 512), 0, 8),
}


# The published recipe


class PublishedBlock(nn.Module):
    """A transformer block in plain torch and one precision, with the parameters of ours."""

    def __init__(self, block: ViTBlock) -> None:
        super().__init__()
        self.ada_zero, self.theta, self.ffn = block.ada_zero, block.theta, block.ffn
        self.norm = nn.LayerNorm(block.msa.y_proj.in_features, elementwise_affine=False)
        self.msa = PublishedAttention(block.msa)

    def forward(
        self,
        x: Tensor,
        mod: Tensor | None,
        coordinates: Tensor,
        skip: Tensor,
        mask: Tensor | None = None,
        first_values: None = None,
    ) -> tuple[Tensor, None]:
        """As `ViTBlock.forward`."""
        a, b, c, d = (scale.unsqueeze(1) for scale in modulation(self.ada_zero, mod, 4))
        y = (a + 1) * self.norm(x) + b
        y = y + self.msa(y, torch.einsum("tn,nj->tj", coordinates, self.theta), mask)
        y = nn.Sequential.forward(self.ffn, y)
        y = (x + c * y) * torch.rsqrt(1 + c * c)
        return (y + d * skip) * torch.rsqrt(1 + d * d), None


class PublishedAttention(nn.Module):
    """Attention that rotates by complex numbers in float32."""

    def __init__(self, msa: MultiheadSelfAttention) -> None:
        super().__init__()
        self.qkv_proj, self.y_proj, self.heads = msa.qkv_proj, msa.y_proj, msa.heads
        self.norm = nn.RMSNorm(
            msa.y_proj.in_features // msa.heads, eps=1e-5, elementwise_affine=False
        )

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor | None) -> Tensor:
        """Attends over (B, T, H), rotated by angles (T, H/2)."""
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        angles = angles.unflatten(-1, (self.heads, -1)).transpose(0, 1)
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (self._rotate(self.norm(a), turn) for a in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.y_proj(y.transpose(1, 2).flatten(-2))

    @staticmethod
    def _rotate(x: Tensor, turn: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(turn * pairs).flatten(-2)


class PublishedNorm(nn.Module):
    """Normalisation over channels from mean and variance."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, *S) over C."""
        variance, mean = torch.var_mean(x, dim=1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + self.eps)


def publish(module: nn.Module) -> None:
    """Replaces the layers of a model by those of the published recipe; parameters are kept."""
    for name, child in module.named_children():
        if isinstance(child, ViTBlock):
            setattr(module, name, PublishedBlock(child))
        elif isinstance(child, ChannelNorm):
            setattr(module, name, PublishedNorm(child.epsilon))
        elif isinstance(child, Conv2d) and any(child.circular_padding):
            plain = nn.Conv2d(
                child.in_channels,
                child.out_channels,
                child.kernel_size,  # type: ignore[arg-type]
                child.stride,  # type: ignore[arg-type]
                padding=child.circular_padding,  # type: ignore[arg-type]
                padding_mode="circular",
            )
            plain.weight, plain.bias = child.weight, child.bias
            setattr(module, name, plain)
        else:
            publish(child)


def keep_channels_first(x: Tensor) -> bool:
    """The published layout of fields, as a function that the compiler can trace."""
    return False


def keep_activations(model: nn.Module) -> None:
    """Turns activation checkpointing off."""
    for module in model.modules():
        if isinstance(module, ViT):
            module.policies = ["none"] * len(module.policies)


# One side of the comparison


class Side:
    """A model, its optimizer and its average, ready to take steps.

    Arguments:
        case: The model and its shapes.
        model: The model, on its device.
        ours: Whether this is the project's side, or the published recipe.
        compiled: Whether to compile the model.
    """

    def __init__(self, case: Case, model: Any, ours: bool, compiled: bool = True) -> None:
        self.ours, self.compiled = ours, compiled
        if ours:
            keep_activations(model)
        else:
            publish(model)
        if compiled and ours:
            compile_blocks(model)
        elif compiled:
            model.compile()
        make = OBJECTIVES[case.task]
        device = next(model.parameters()).device
        self.precision = choose_precision("auto", device) if ours else "fp32"
        self.objective = make(model, precision=self.precision)
        self.model = model
        self.draw = CudaGraphedSampling()
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=ours or None)
        self.average = [p.detach().clone() for p in self.parameters]

    def held(self) -> Iterator[Tensor]:
        """The tensors kept between steps: weights, optimizer states, moving average."""
        states = chain.from_iterable(s.values() for s in self.optimizer.state.values())
        return chain(self.parameters, self.average, filter(torch.is_tensor, states))

    @contextlib.contextmanager
    def recipe(self) -> Iterator[None]:
        """Sets what modules do not determine: the kernels and the memory format."""
        with contextlib.ExitStack() as stack:
            stack.callback(kernels.set_kernel_mode, kernels.get_kernel_mode())
            kernels.set_kernel_mode("auto" if self.ours else "torch")
            if not self.ours:
                stack.enter_context(
                    mock.patch.object(layers, "prefers_channels_last", keep_channels_first)
                )
            yield

    def step(self, batch: Batch) -> Tensor:
        """One step: forward, backward, clipping, optimizer, moving average. Returns the loss."""
        with self.recipe():
            loss, _ = self.objective(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            with torch.no_grad():
                kernels.ema([self.average], self.parameters, [0.999])
        return loss.detach()

    def stop_training(self, case: Case) -> None:
        """Prepares the model for sampling; ours is a new one, compiled for inference."""
        state, device = self.model.state_dict(), self.parameters[0].device
        if self.ours:
            self.model = make_model(case, "").to(device)
            self.model.load_state_dict(state)
            prepare_for_inference(self.model, self.precision, self.compiled)
        self.model.eval().requires_grad_(False)
        self.parameters = list(self.model.parameters())

    def sample(self, start: Tensor, mask: Tensor, x_obs: Tensor, label: Tensor) -> Tensor:
        """Samples windows, given their known frames, in 16 steps of Adams–Bashforth."""
        narrow = torch.autocast(start.device.type, torch.bfloat16, self.precision == "bf16")
        with self.recipe(), narrow:
            if self.ours:
                how = {"sampler": "ab", "steps": SAMPLER_STEPS}
                return self.draw(self.model, mask, x_obs, label, x_1=start, **how)
            conditioned: Any = ConditionedDenoiser(self.model, mask, x_obs, label)
            solver = zABSampler(conditioned, order=3, steps=SAMPLER_STEPS, silent=True)
            return solver(start)


# The comparison


def make_model(case: Case, weights: str | None) -> Any:
    """The model of a case, with random weights or those in the folder `weights`."""
    if weights:
        return load_model(weights).train().requires_grad_()
    config = compose([*case.words, "run=-", "data=-"])
    torch.manual_seed(0)
    if case.task == "autoencoder":
        options = {k: v for k, v in config["ae"].items() if v is not None}
        return make_autoencoder(pix_channels=case.shape[0], spatial=2, periodic=True, **options)
    group, make = {
        "diffusion": ("denoiser", make_denoiser),
        "surrogate": ("surrogate", make_surrogate),
    }[case.task]
    sizes = {"channels": case.shape[0], "spatial": 3, "label_features": case.labels}
    model = make(**{**config[group], **sizes, "periodic": False})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ada_zero.2" in name:
                parameter.mul_(30)
    return model


def make_batch(case: Case, device: torch.device) -> Batch:
    """A batch of noise."""
    n = case.batch
    return Batch(
        x=torch.randn(n, *case.shape, device=device),
        label=torch.randn(n, case.labels, device=device),
        seed=torch.arange(n),
        weight=torch.ones(n, device=device),
        window=torch.arange(n),
    )


def count_flops(case: Case) -> int:
    """The floating-point operations of a training step per sample: three times the forward pass.

    Only matrix products count. Operations that are done once per batch are left out.
    """
    with FakeTensorMode():
        model = make_model(case, "")
        one, two = (_forward_flops(case, model, batch) for batch in (1, 2))
    return 3 * (two - one)


def _forward_flops(case: Case, model: Any, batch: int) -> int:
    x, label = torch.empty(batch, *case.shape), torch.empty(batch, case.labels)
    mask = torch.empty(batch, 1, *[1] * (x.ndim - 2), dtype=torch.bool)
    # The counter does not know the fused attention of a CPU, but the products it consists of.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if case.task == "autoencoder":
            model(x.squeeze(2))
        elif case.task == "surrogate":
            model(x, mask, label)
        else:
            model(x, torch.zeros(batch), mask=mask, label=label)
    return counter.get_total_flops()


def attention_that_ran(run: Callable[[], Any]) -> str:
    """The names of the attention operators a function calls, as the profiler sees them."""
    with torch.profiler.profile() as profile:
        run()
    names = {event.key.rpartition("::")[2] for event in profile.key_averages()}
    backends = [n for n in names if n.startswith("_scaled_dot_product") or "flex_attention" in n]
    fused = " ".join(sorted(n for n in backends if "backward" not in n))
    kernels = [n for n in names if any(word in n for word in ("sdpa", "fmha", "flash"))]
    return fused or min(kernels, default="matrix products")  # a graph's replay shows kernels alone


def with_held(timing: Timing, tensors: Iterable[Tensor]) -> Timing:
    """A timing whose peak of memory counts what one side keeps there between calls."""
    held = sum(tensor.nbytes for tensor in tensors)
    return replace(timing, peak=timing.peak + held) if timing.peak else timing


def compare_steps(case: Case, sides: Sequence[Side], rounds: int, flops: int) -> Iterator[dict]:
    """Rows of the training step."""
    device = sides[0].parameters[0].device
    batch = make_batch(case, device)
    losses = [side.step(batch) for side in sides]
    timings = alternate([lambda s=s: s.step(batch) for s in sides], rounds, device)
    error = float((losses[1] - losses[0]).abs() / losses[0].abs())
    for side, timing in zip(sides, timings):
        rate = case.batch / timing.best
        yield {
            "batch": case.batch,
            **with_held(timing, side.held()).row(case.batch, timings[0]),
            "what": "train step",
            "precision": side.precision,
            "tflop_per_s": f"{flops * rate / 1e12:.4g}",
            "mfu_h100": f"{flops * rate / (1e12 * GPUS['h100'].peak):.3f}"
            if device.type == "cuda"
            else "",
            "difference": f"{error:.1e}" if side.ours else "",
            "attention": attention_that_ran(lambda s=side: s.step(batch)),
        }


def compare_sampling(case: Case, sides: Sequence[Side], rounds: int, flops: int) -> Iterator[dict]:
    """Rows of sampling: windows of which the first frame is known."""
    device = sides[0].parameters[0].device
    x = torch.randn(case.members, *case.shape, device=device)
    mask = (torch.arange(case.shape[1], device=device) < 1).view(1, 1, -1, 1, 1)
    x_obs, label = torch.where(mask, x, 0.0), torch.randn(case.members, case.labels, device=device)
    sigma = sides[0].model.schedule(torch.ones((), device=device))[1]
    start = sigma * torch.randn_like(x)
    for side in sides:
        side.stop_training(case)
    samples = [side.sample(start, mask, x_obs, label).float() for side in sides]
    timings = alternate(
        [lambda s=s: s.sample(start, mask, x_obs, label) for s in sides], rounds, device
    )
    unknown = [torch.where(mask, 0.0, sample) for sample in samples]
    error = float((unknown[1] - unknown[0]).norm() / unknown[0].norm())
    for side, timing in zip(sides, timings):
        rate = flops / 3 * SAMPLER_STEPS * case.members / timing.best
        yield {
            "batch": case.members,
            **with_held(timing, side.parameters).row(case.members, timings[0]),
            "what": "sampling",
            "precision": side.precision,
            "tflop_per_s": f"{rate / 1e12:.4g}",
            "mfu_h100": f"{rate / H100_PEAK:.3f}" if device.type == "cuda" else "",
            "difference": f"{error:.1e}" if side.ours else "",
            "attention": attention_that_ran(lambda s=side: s.sample(start, mask, x_obs, label)),
        }


@dataclass
class Options:
    """The keys of the benchmark."""

    out: str = "benchmarks/step.csv"
    cases: list[str] | None = None
    batch_size: int | None = None
    rounds: int = 10
    threads: int | None = None
    weights: str | None = None
    compiled: bool = True


def compare(name: str, case: Case, options: Options, device: torch.device) -> list[dict]:
    """Measures a case; prints and returns its rows."""
    flops = count_flops(case)
    model = make_model(case, options.weights).to(device)
    models = (model, copy.deepcopy(model))
    sides = [Side(case, m, ours, options.compiled) for m, ours in zip(models, (False, True))]
    results = compare_steps(case, sides, options.rounds, flops)
    if case.members:
        results = chain(results, compare_sampling(case, sides, options.rounds, flops))
    rows = []
    for side, row in zip(("published", "ours") * 2, results):
        shown = {"case": name, "side": side, **row}
        rows.append({**shown, **describe_machine(("torch", "triton", "azula"))})
        print("  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)
    return rows


def compare_what_fits(name: str, case: Case, options: Options, device: torch.device) -> list[dict]:
    """As `compare`, with the batch halved until both sides fit in memory.

    Raises:
        OutOfMemoryError: A single sample is too large.
    """
    while True:
        try:
            return compare(name, case, options, device)
        except torch.OutOfMemoryError:
            if case.batch == 1:
                raise
        case = replace(case, batch=case.batch // 2, members=(case.members + 1) // 2)
        print(f"case {name}  out of memory, trying batch {case.batch}", flush=True)
        gc.collect()
        torch._dynamo.reset()
        torch.cuda.empty_cache()


def main(words: Sequence[str]) -> None:
    """Runs the benchmark; see the module's docstring."""
    gpu = torch.cuda.is_available()
    options = parse_overrides(Options, words)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    default = ["euler", "rayleigh_benard", "pixel", "autoencoder"] if gpu else ["demo"]
    rows = []
    for name in options.cases or default:
        if name not in CASES:
            raise ValueError(f"cases: '{name}' is unknown; known: {', '.join(CASES)}")
        case = CASES[name]
        if options.batch_size:
            case = replace(
                case, batch=options.batch_size, members=min(case.members, options.batch_size)
            )
        rows += compare_what_fits(name, case, options, torch.device("cuda" if gpu else "cpu"))
        write_rows(options.out, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
