"""Moving averages against sums written out, float64; widths; averages made afterwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lola_ds.config import compose
from lola_ds.train.checkpoint.posthoc import Snapshot, combine
from lola_ds.train.ema import Ema
from lola_ds.train.ema_profiles import Exponential, PowerLaw, Profile, make_profiles
from lola_ds.train.zero.partitions import Partition

PROFILES = [Exponential(0.9), Exponential(0.999), PowerLaw(0.05), PowerLaw(0.1), PowerLaw(0.28)]


def walk(steps: int, size: int) -> Tensor:
    """Weights after each step: noisy, and on their way to somewhere. Shape (steps, size)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps, size, generator=generator)
    drift = torch.linspace(0, 1, steps)[:, None].sqrt() * torch.randn(size, generator=generator)
    return 5 * drift + 0.3 * noise


def average(
    path: Tensor, profiles: list[Profile], keep: Callable[[int, Ema], None] = lambda *_: None
) -> Ema:
    """The averages along a path, by two partitions of one flat tensor; `keep` sees every step."""
    flat = path[0].clone()
    split = len(flat) // 3
    partitions = [
        Partition("a", (split,), 0, split, flat, 0),
        Partition("b", (len(flat) - split,), 0, len(flat) - split, flat, split),
    ]
    ema = Ema(partitions, profiles)
    for step, weights in enumerate(path, start=1):
        flat.copy_(weights)
        ema.update(step)
        keep(step, ema)
    return ema


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_averages_are_the_sums_they_stand_for(steps: int) -> None:
    path = walk(steps, 10)
    ema = average(path, PROFILES)
    tau = np.arange(1, steps + 1)
    for profile, values in zip(PROFILES, ema.values):
        if isinstance(profile, PowerLaw):  # telescoped: step k weighs k^p - (k - 1)^p
            power = profile.gamma + 1
            shares = (tau / steps) ** power - ((tau - 1) / steps) ** power
        else:
            decays = np.array([profile.decay(int(k)) for k in tau])
            later = np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)
            shares = (1 - decays) * later
        expected = torch.from_numpy(shares) @ path.double()
        if isinstance(profile, Exponential):  # what is left of the start
            expected += np.prod(decays) * path[0].double()
        torch.testing.assert_close(torch.cat(values).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2, PowerLaw.WIDEST])
def test_profiles_are_as_wide_as_they_say(sigma_rel: float) -> None:
    gamma = PowerLaw(sigma_rel).gamma
    tau = (np.arange(200_000) + 0.5) / 200_000
    density = (gamma + 1) * tau**gamma
    mean = np.mean(density * tau)
    assert np.sqrt(np.mean(density * (tau - mean) ** 2)) == pytest.approx(sigma_rel, rel=1e-4)


def test_configuration_names_the_averages() -> None:
    words = ["task=autoencoder", "run=r", "data=d"]
    more = ["ema.decay=[0.99,0.999]", "ema.power_law=[0.05]"]
    for given, kinds in {
        (): ["ema_0.999"],
        tuple(more): ["ema_0.99", "ema_0.999", "power_0.05"],
        ("ema.decay=null", "ema.power_law=[0.1]"): ["power_0.1"],
    }.items():
        profiles = make_profiles(compose([*words, *given])["ema"])
        assert [profile.kind for profile in profiles] == kinds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ema.decay=1.0"], r"ema\.decay=1\.0 must be a number in \[0, 1\)"),
        (["ema.decay=often"], r"ema\.decay=often must be a number"),
        (["ema.power_law=[0.4]"], r"ema\.power_law=\[0\.4\] must be a list of sigma_rel"),
        (["ema.decay=null"], "must ask for one average at least"),
        (["ema.decay=[0.9,0.9]"], "each of them once"),
        (["ema.keep_every=3", "checkpoint.every=2"], r"ema\.keep_every=3 must be a multiple of"),
    ],
)
def test_averages_that_cannot_be_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(["task=autoencoder", "run=r", "data=d", *words])


def test_inner_products_are_integrals() -> None:
    one, two = Snapshot(6.94, 700), Snapshot(16.97, 1000)
    tau = (np.arange(1_000_000) + 0.5) / 1_000
    p, q = (
        np.where(tau <= s.steps, (s.gamma + 1) * (tau / s.steps) ** s.gamma / s.steps, 0)
        for s in (one, two)
    )
    share = np.sum(p * q) / np.sum(p * p)  # the best multiple of one for two
    weights, distance = combine([one], two)
    assert weights == pytest.approx([share], rel=1e-4)
    left_over = np.sum((q - share * p) ** 2) / np.sum(q * q)
    assert distance == pytest.approx(np.sqrt(left_over), rel=1e-4)


def test_averages_are_made_of_those_that_were_kept() -> None:
    """Any width, from two that were tracked: as near as their profiles, nearer with more."""
    path, stored = walk(1024, 200), [PowerLaw(0.05), PowerLaw(0.1)]
    other = [PowerLaw(sigma_rel) for sigma_rel in (0.06, 0.08, 0.15, 0.2)]
    kept: dict[int, list[Tensor]] = {}

    def keep(step: int, ema: Ema) -> None:
        kept[step] = [torch.cat(values).double() for values in ema.values[: len(stored)]]

    truth = average(path, [*stored, *other], keep).values[len(stored) :]
    for wanted, values in zip(other, truth):
        expected = torch.cat(values).double()
        errors = []
        for steps in (range(128, 1025, 128), range(32, 1025, 32)):
            snapshots = [Snapshot(p.gamma, step) for step in steps for p in stored]
            tensors = [tensor for step in steps for tensor in kept[step]]
            weights, distance = combine(snapshots, Snapshot(wanted.gamma, 1024))
            made = torch.from_numpy(weights) @ torch.stack(tensors)
            errors.append(((made - expected).norm() / expected.norm()).item())
            assert errors[-1] < 2 * distance + 1e-3
        assert errors[1] < min(errors[0], 2e-3), (wanted, errors)


def test_an_average_that_was_kept_is_itself() -> None:
    snapshots = [Snapshot(PowerLaw(s).gamma, n) for n in (100, 200) for s in (0.05, 0.1)]
    weights, distance = combine(snapshots, snapshots[2])
    np.testing.assert_allclose(weights, [0, 0, 1, 0], atol=1e-9)
    assert distance < 1e-6
