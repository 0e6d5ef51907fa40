r"""Guidance: sampling windows that agree with observations of their frames.

Observations are made by an operator, with noise: :math:`y = A(x) + \eta`, :math:`\eta \sim
\mathcal{N}(0, s^2 I)`. Guidance turns the mean :math:`\mathbb{E}[x \mid x_t]` of a denoiser into an
approximation of :math:`\mathbb{E}[x \mid x_t, y]`,

.. math:: \mathbb{E}[x \mid x_t, y] = \mathbb{E}[x \mid x_t]
    + \frac{\sigma_t^2}{\alpha_t} \nabla_{x_t} \log p(y \mid x_t) \, ,

so that any sampler with the same network draws from :math:`p(x \mid y)`. With :math:`\hat{x} =
\mathbb{E}[x \mid x_t]`, two methods approximate the likelihood:

- ``mmps``, moment matching: :math:`p(y \mid x_t) \approx \mathcal{N}(A \hat{x}, s^2 I + A V
  A^\top)`, with the covariance :math:`V = \mathbb{V}[x \mid x_t] = \frac{\sigma_t^2}{\alpha_t}
  \nabla_{x_t} \hat{x}` that Tweedie's formula gives, never formed: a few iterations of a Krylov
  solver apply the inverse. Exact for Gaussian data and linear operators.
- ``sda``, score-based: the covariance is a multiple of the identity, :math:`(s^2 + \gamma
  \frac{\sigma_t^2}{\alpha_t^2 + \sigma_t^2}) I`, as if the data were white. Cheaper, and cruder.

In a rollout, each window is guided by the observations of its unknown frames:

    guidance = make_guidance(method="mmps", operator="subsample", every=8, std=0.05)
    y = emulator.observe(truth, guidance, seed=0)     # truth (C, T, *S): the states to be emulated
    forecast = emulator.rollout(x0, label, T, guidance=guidance, observations=y)

`guidance.describe()` is what a record of the forecast should hold. Below the emulator, a `Guide`
binds guidance and observations to a model's own states: `make_step(model, label, guide=guide)`, and
for a single window `sample(denoiser, mask, x_obs, label, guide=guide.at(0))`.

Shapes: B windows, N states, C channels of a state, C' channels of what the model sees, L frames of
a window, F observed frames, *S and *S' spatial axes.

References:
    | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)
    | https://arxiv.org/abs/2405.13712

    | Score-based Data Assimilation (Rozet & Louppe, 2023)
    | https://arxiv.org/abs/2306.10574

    | Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023)
    | https://openreview.net/forum?id=9_gsMA8MRKQ, whose variance of white data `sda` uses
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Protocol

import torch
from azula.denoise import DiracPosterior
from azula.linalg.solve import gmres
from azula.noise import Schedule
from torch import Tensor, nn

from lola_ds.kernels import enable_second_derivatives

__all__ = [
    "Downscale",
    "Guidance",
    "Guide",
    "GuidedDenoiser",
    "Observations",
    "Stripe",
    "Subsample",
    "conjugate_gradients",
    "make_guidance",
    "observe",
]

METHODS = ("mmps", "sda")
UNITS = ("standardised", "physical")
SOLVERS = ("gmres", "cg")

Operator = Callable[[Tensor], Tensor]
"""Maps states (N, C, *S) to measurements (N, ...), differentiably."""


@dataclass(frozen=True)
class Subsample:
    """Observes every `every`-th cell along each axis: to (N, C, *ceil(S / every))."""

    every: int = 8

    def __post_init__(self) -> None:
        _check_positive("every", self.every)

    def __call__(self, x: Tensor) -> Tensor:
        """Keeps cells 0, every, 2 every, … of each axis of states (N, C, *S)."""
        return x[(..., *[slice(None, None, self.every)] * (x.ndim - 2))]


@dataclass(frozen=True)
class Downscale:
    """Observes means over blocks of `factor` cells along each axis: to (N, C, *(S / factor)).

    Raises:
        ValueError: An axis is not a multiple of `factor`.
    """

    factor: int = 8

    def __post_init__(self) -> None:
        _check_positive("factor", self.factor)

    def __call__(self, x: Tensor) -> Tensor:
        """Averages states (N, C, *S) over blocks."""
        for axis in range(2, x.ndim):
            if x.shape[axis] % self.factor:
                raise ValueError(
                    f"downscale: factor={self.factor} does not divide the {x.shape[axis]} cells of "
                    f"axis {axis - 2}"
                )
            x = x.unflatten(axis, (-1, self.factor)).mean(dim=axis + 1)
        return x


@dataclass(frozen=True)
class Stripe:
    """Observes the cells within `width` of the domain's boundary: to (N, C, cells)."""

    width: int = 2

    def __post_init__(self) -> None:
        _check_positive("width", self.width)

    def __call__(self, x: Tensor) -> Tensor:
        """Keeps the cells at the boundary of states (N, C, *S), in row-major order."""
        inside = torch.ones(x.shape[2:], dtype=torch.bool, device=x.device)
        for axis, size in enumerate(x.shape[2:]):
            cell = torch.arange(size, device=x.device)
            inner = (cell >= self.width) & (cell < size - self.width)
            inside &= inner.view(-1, *[1] * (x.ndim - 3 - axis))
        return x.flatten(2)[:, :, ~inside.flatten()]


OPERATORS: dict[str, type[Any]] = {"subsample": Subsample, "downscale": Downscale, "stripe": Stripe}
"""Operators by name."""


@dataclass(frozen=True)
class Guidance:
    """Options of guided sampling.

    Arguments:
        operator: The observation operator: one of `OPERATORS`, or any callable.
        std: The standard deviation s of the noise, in the units of the measurements.
        method: `mmps` or `sda`.
        units: What the operator is given: `standardised` states, or `physical` ones.
        solver: The solver of `mmps`: `gmres`, or `cg`, for which the covariance should be
            symmetric, as only an exact denoiser's is.
        iterations: The number of iterations of the solver, each as costly as a gradient of the
            network and the decoder.
        gamma: The coefficient of the variance of `sda`. The diagonal of A Aᵀ for white data; the
            more correlated data are, the more it takes to keep sampling from overshooting.

    Raises:
        ValueError: An option is unknown or out of range.
    """

    operator: Operator
    std: float = 0.05
    method: str = "mmps"
    units: str = "standardised"
    solver: str = "gmres"
    iterations: int = 1
    gamma: float = 10.0

    def __post_init__(self) -> None:
        known = {"method": METHODS, "units": UNITS, "solver": SOLVERS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"guidance: {name}='{getattr(self, name)}' is unknown; "
                    f"known: {', '.join(values)}"
                )
        _check_positive("iterations", self.iterations)
        for name in ("std", "gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"guidance: {name}={getattr(self, name)} should be positive")

    def describe(self) -> dict[str, Any]:
        """Returns the options that a forecast depends on as JSON values."""
        operator = self.operator
        name = next((n for n, kind in OPERATORS.items() if isinstance(operator, kind)), None)
        given = asdict(operator) if is_dataclass(operator) else {}  # pyright: ignore[reportArgumentType]
        settings = {
            "mmps": {"solver": self.solver, "iterations": self.iterations},
            "sda": {"gamma": self.gamma},
        }
        return {
            "method": self.method,
            "operator": name or getattr(operator, "__qualname__", type(operator).__qualname__),
            **given,
            "std": self.std,
            "units": self.units,
            **settings[self.method],
        }


def make_guidance(
    *, method: str = "mmps", operator: str | Operator = "subsample", **options: Any
) -> Guidance:
    """Makes guidance from names and numbers.

    Arguments:
        method: `mmps` or `sda`.
        operator: The name of one of `OPERATORS`, or a callable.
        options: Those of the operator (`every`, `factor` or `width`) and of `Guidance`.

    Returns:
        The guidance.

    Raises:
        ValueError: The operator or an option is unknown; the message names the known ones.
    """
    settings = set(inspect.signature(Guidance).parameters)
    own = {key: value for key, value in options.items() if key in settings}
    rest = {key: value for key, value in options.items() if key not in settings}
    known: set[str] = set()
    if isinstance(operator, str):
        if operator not in OPERATORS:
            raise ValueError(
                f"guidance: operator='{operator}' is unknown; known: {', '.join(OPERATORS)}"
            )
        known = set(inspect.signature(OPERATORS[operator]).parameters)
    if unknown := sorted(set(rest) - known):
        names = ", ".join(sorted(known | settings - {"operator", "method"}))
        raise ValueError(f"guidance: {unknown[0]} is unknown for this operator; known: {names}")
    measure = OPERATORS[operator](**rest) if isinstance(operator, str) else operator
    return Guidance(measure, method=method, **own)


@dataclass(frozen=True)
class Observations:
    """Measurements of some frames of a trajectory.

    Attributes:
        values: Measurements, with shape (F, ...).
        frames: The numbers of the F frames. An emulator counts from the last known state, 0: its
            first forecast is frame 1.
    """

    values: Tensor
    frames: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.frames):
            raise ValueError(
                f"{len(self.values)} observations were given for {len(self.frames)} frames"
            )


@torch.no_grad()
def observe(
    x: Tensor,
    guidance: Guidance,
    frames: Sequence[int],
    generator: torch.Generator | None = None,
) -> Observations:
    """Measures states with the operator and the noise of the guidance.

    Arguments:
        x: The states of `frames`, with shape (F, C, *S), in the guidance's units.
        guidance: The operator and its noise.
        frames: The frames' numbers.
        generator: The source of the noise, on any device.

    Returns:
        The observations, with values of shape (F, ...).
    """
    y = guidance.operator(x)
    source = y.device if generator is None else generator.device
    noise = torch.randn(y.shape, generator=generator, device=source, dtype=y.dtype)
    return Observations(y + guidance.std * noise.to(y.device), tuple(frames))


class Guide:
    """Guides the windows of a rollout.

    Arguments:
        guidance: The method and the operator.
        observations: The observations, of the same trajectory for all windows of a batch or one for
            each; then all of the same frames.
        decode: Maps what the model sees, states (N, C', *S'), to states (N, C, *S) in the
            guidance's units, differentiably; None for a model of such states.
        origin: The number, among the frames of the rollout, of the observations' frame 0.

    Raises:
        ValueError: Observations of different frames are given.
    """

    def __init__(
        self,
        guidance: Guidance,
        observations: Observations | Sequence[Observations],
        decode: Callable[[Tensor], Tensor] | None = None,
        origin: int = 0,
    ) -> None:
        each = [observations] if isinstance(observations, Observations) else list(observations)
        self.frames = each[0].frames
        if any(one.frames != self.frames for one in each):
            raise ValueError(
                "guidance: all windows of a batch should have the same frames observed"
            )
        self.guidance = guidance
        self.values = torch.stack([one.values for one in each])
        self.decode = decode
        self.origin = origin

    def at(self, start: int) -> Callable[[_ConditionedDenoiser], _AzulaDenoiser]:
        """Returns the function that guides the denoiser of one window.

        A window is not guided if no unknown frame of it is observed.

        Arguments:
            start: The number, in the rollout, of the window's first frame.

        Returns:
            A function from a denoiser to a guided one.
        """

        def wrap(denoiser: _ConditionedDenoiser) -> _AzulaDenoiser:
            known = denoiser.known_frames()
            seen = {frame + self.origin - start: i for i, frame in enumerate(self.frames)}
            places = [k for k in range(len(known)) if k in seen and not known[k]]
            if not places:
                return denoiser
            y = self.values[:, [seen[k] for k in places]].to(denoiser.x_obs).flatten(1)
            return GuidedDenoiser(denoiser, y, lambda x: self._measure(x, places), self.guidance)

        return wrap

    def _measure(self, x: Tensor, places: Sequence[int]) -> Tensor:
        """Measures frames of windows: (B, C', L, *S') -> (B, D)."""
        states = x[:, :, list(places)].transpose(1, 2).flatten(0, 1)
        with enable_second_derivatives():  # `mmps` takes them
            states = states if self.decode is None else self.decode(states)
            return self.guidance.operator(states).reshape(len(x), -1)


class GuidedDenoiser(nn.Module):
    r"""The denoiser of p(x | x_t, y), for azula's samplers.

    .. math:: \mathbb{E}[x \mid x_t, y] \approx \hat{x} + V A^\top W (y - A(\hat{x})) \, ,
        \qquad V = \frac{\sigma_t^2}{\alpha_t} \nabla_{x_t} \hat{x}

    where :math:`A^\top` stands for the transposed Jacobian of a nonlinear :math:`A`. The weight is
    :math:`W = (s^2 I + A V A^\top)^{-1}` for ``mmps`` and :math:`(s^2 + \gamma \sigma_t^2 /
    (\alpha_t^2 + \sigma_t^2))^{-1} I` for ``sda``.

    Arguments:
        denoiser: Gives the mean of p(x | x_t).
        y: Observations of each window, with shape (B, D) or (1, D).
        measure: A, from windows (B, C', L, *S') to (B, D).
        guidance: The method and its options.
    """

    def __init__(
        self,
        denoiser: _AzulaDenoiser,
        y: Tensor,
        measure: Callable[[Tensor], Tensor],
        guidance: Guidance,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.y, self.measure, self.guidance = y, measure, guidance

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:
        """Computes the mean of p(x | x_t, y).

        Arguments:
            x_t: Noisy windows, with shape (B, C', L, *S').
            t: The time, with shape ().

        Returns:
            The posterior, whose mean has the shape of `x_t`.
        """
        alpha_t, sigma_t = (s.to(x_t.dtype) for s in self.schedule(t))
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            x_hat = self.denoiser(x_t, t).mean
            x = x_hat.detach().requires_grad_()
            y_hat = self.measure(x)
        residual = (self.y - y_hat).detach()

        def covariance(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(x_hat, x_t, v, retain_graph=True)
            return sigma_t.square() / alpha_t * product

        if self.guidance.method == "sda":
            white = sigma_t.square() / (alpha_t.square() + sigma_t.square())
            weighted = residual / (self.guidance.std**2 + self.guidance.gamma * white)
        else:
            weighted = self._solve(residual, x, y_hat, covariance)
        (direction,) = torch.autograd.grad(y_hat, x, weighted)
        return DiracPosterior(mean=x.detach() + covariance(direction))

    def _solve(
        self, residual: Tensor, x: Tensor, y_hat: Tensor, covariance: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Applies (s² I + A V Aᵀ)⁻¹ to residuals (B, D).

        The Jacobian's product A v is the derivative of ⟨Aᵀ u, v⟩ by u: two backward passes, for
        which every layer of a decoder has rules; not all have forward-mode derivatives.
        """
        u = torch.zeros_like(residual).requires_grad_()
        with torch.enable_grad():
            (pulled,) = torch.autograd.grad(y_hat, x, u, create_graph=True)

        def matrix(v: Tensor) -> Tensor:
            (back,) = torch.autograd.grad(y_hat, x, v, retain_graph=True)
            (forward,) = torch.autograd.grad(pulled, u, covariance(back), retain_graph=True)
            return self.guidance.std**2 * v + forward

        solve = {"gmres": gmres, "cg": conjugate_gradients}[self.guidance.solver]
        return solve(matrix, residual, iterations=self.guidance.iterations)


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solves positive definite systems, one for each row, by conjugate gradients.

    The covariance of a network is neither quite symmetric nor quite positive: a row goes no further
    in a direction of negative curvature (Steihaug, 1983), along which azula's solver diverges.

    Arguments:
        matrix: Applies the matrices to vectors of shape (B, D).
        b: The right-hand sides, with shape (B, D).
        iterations: The number of iterations.

    Returns:
        The solutions, with shape (B, D).
    """
    x, r = torch.zeros_like(b, dtype=torch.float64), b.double()
    p, rr = r, r.square().sum(dim=-1, keepdim=True)
    for _ in range(iterations):
        product = matrix(p.to(b)).double()
        curvature = (p * product).sum(dim=-1, keepdim=True)
        step = torch.where(curvature > 0, rr / curvature, 0.0)
        x, r = x + step * p, r - step * product
        previous, rr = rr, r.square().sum(dim=-1, keepdim=True)
        p = r + torch.where(previous > 0, rr / previous, 0.0) * p
    return x.to(b)


class _AzulaDenoiser(Protocol):
    """What azula's samplers and guidance call."""

    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Any: ...


class _ConditionedDenoiser(_AzulaDenoiser, Protocol):
    """A denoiser of windows of which some frames are known."""

    x_obs: Tensor

    def known_frames(self) -> list[bool]: ...


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"guidance: {name}={value} should be at least 1")
