"""Every metric of the tables: a float64 restatement, and cases whose answers are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from lola_ds.evaluate.scores import score_ensemble, score_states, score_truth
from lola_ds.metrics import Grid, nominal_coverage
from lola_ds.metrics.distributions import _directions

BANDS = ("low", "mid", "high")
EPS = 1e-6


def average(x: np.ndarray, w: np.ndarray) -> float:
    """The mean over cells of relative volumes w."""
    return sum(a * b for a, b in zip(x.flat, w.flat)) / sum(w.flat)


def transport(u: np.ndarray, v: np.ndarray, w: np.ndarray) -> float:
    """∫ |F_u - F_v|, from one value to the next."""
    w, values = w / w.sum(), sorted([*u.flat, *v.flat])
    return sum(
        abs(w[u <= a].sum() - w[v <= a].sum()) * (b - a) for a, b in itertools.pairwise(values)
    )


def shells(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Re Σ û v̂* over the shells 0, 1, …, Nyquist's, from sums over all cells (no FFT)."""
    sides, longest = u.shape, max(u.shape)
    places = list(np.ndindex(*sides))
    total = np.zeros(longest // 2 + 1)
    for n in places:
        signed = [m - s if m > s / 2 else m for m, s in zip(n, sides)]
        k = math.floor(longest * math.hypot(*(m / s for m, s in zip(signed, sides))) + 0.5)
        if k >= len(total):
            continue
        phases = np.array([sum(m * x / s for m, x, s in zip(n, p, sides)) for p in places])
        waves = np.exp(-2j * math.pi * phases) / u.size
        total[k] += ((u.ravel() @ waves) * np.conj(v.ravel() @ waves)).real
    return total


def bands(x: np.ndarray) -> list[float]:
    """Means over the shells from 1 to Nyquist's, cut in three equal pieces of log k."""
    nyquist = len(x) - 1
    piece = [
        min(2, math.floor(3 * math.log(k) / math.log(nyquist) - 1e-9))
        for k in range(1, nyquist + 1)
    ]
    piece = [max(0, i) for i in piece]
    return [
        float(np.mean([x[k] for k in range(1, nyquist + 1) if piece[k - 1] == i])) for i in range(3)
    ]


def pointwise(u: np.ndarray, x: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """Scores of one state that need no transform."""
    square, mean = average((u - x) ** 2, w), average(u, w)
    power, variance = average(u**2, w), average((u - mean) ** 2, w)
    other = average(x, w)
    covariance = average((u - mean) * (x - other), w)
    return {
        "mae": average(abs(u - x), w),
        "rmse": math.sqrt(square),
        "nrmse": math.sqrt(square / (power + EPS)),
        "vrmse": math.sqrt(square / (variance + EPS)),
        "linf": max(abs(a - b) for a, b in zip(u.flat, x.flat)),
        "pearson": covariance / math.sqrt(variance * average((x - other) ** 2, w)),
        "total": abs(other - mean) / math.sqrt(power + EPS),
        "wasserstein": transport(u, x, w),
    }


def spectral(u: np.ndarray, x: np.ndarray) -> dict[str, float]:
    """Scores of one state by band of wave number."""
    p_u, p_x, cross = shells(u, u), shells(x, x), shells(u, x)
    errors = [math.sqrt(e) for e in bands((1 - p_x / p_u) ** 2)]
    rho = bands(cross / np.sqrt(p_u * p_x))
    found = {f"spectrum_{band}": e for band, e in zip(BANDS, errors)}
    return found | {f"correlation_{band}": r for band, r in zip(BANDS, rho)}


def restate(u: np.ndarray, x: np.ndarray, w: np.ndarray, even: bool) -> dict[str, float]:
    """All scores of one state of one field; those of scales only where cells are even."""
    return pointwise(u, x, w) | (spectral(u, x) if even else {})


def sliced(u: np.ndarray, x: np.ndarray, w: np.ndarray) -> float:
    """The mean distance of projections of all fields (C, *S), in units of the truth's deviation."""
    means = [average(a, w) for a in u]
    scales = [math.sqrt(average((a - m) ** 2, w)) for a, m in zip(u, means)]
    distances = []
    for direction in _directions(len(u)).numpy():
        p, q = (
            sum(d * (a - m) / s for d, a, m, s in zip(direction, y, means, scales)) for y in (u, x)
        )
        distances.append(transport(p, q, w))
    return sum(distances) / len(distances)


def of_members(u: np.ndarray, v: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """Scores of the members v (M, *S) together."""
    M, mean = len(v), sum(v) / len(v)
    pairs = list(itertools.product(range(M), repeat=2))
    variance = sum((x - mean) ** 2 for x in v) / (M - 1)
    spread, skill = math.sqrt(average(variance, w)), math.sqrt(average((u - mean) ** 2, w))

    def fair(distance) -> float:
        among = sum(distance(v[m], v[n]) for m, n in pairs) / (2 * M * (M - 1))
        return sum(distance(x, u) for x in v) / M - among

    return {
        "spread": spread,
        "skill": skill,
        "spread_skill": math.sqrt((M + 1) / M) * spread / skill,
        "crps": fair(lambda a, b: average(abs(a - b), w)),
        "energy": fair(lambda a, b: math.sqrt(average((a - b) ** 2, w))),
        "coverage": float(np.mean((u > v.min(axis=0)) & (u < v.max(axis=0)))),
    }


def ranks(u: np.ndarray, v: np.ndarray) -> list[float]:
    """How often 0..M members lie below the truth."""
    below = [sum(x[cell] < u[cell] for x in v) for cell in np.ndindex(*u.shape)]
    return [below.count(r) / u.size for r in range(len(v) + 1)]


def chebyshev(n: int) -> np.ndarray:
    return -np.cos(np.pi * (np.arange(n) + 0.5) / n)


@pytest.mark.parametrize("shape", [(8, 6), (6, 4, 4), (6, 8)], ids=["2d", "3d", "chebyshev"])
def test_every_metric_is_its_formula(
    shape: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    """Two fields at two lead times, three members; no metric is left out."""
    even = request.node.callspec.id != "chebyshev"
    grid = Grid(shape, () if even else (None, chebyshev(8)))
    w = np.ones(shape)
    if not even:
        w = w * np.diff(-np.cos(np.pi * np.arange(9) / 8))
    rng = np.random.default_rng(len(shape))
    u = rng.normal(1, 2, (2, 2, *shape))
    r, v = u + 0.3 * rng.normal(size=u.shape), u + rng.normal(size=(3, *u.shape))
    tu, tv, tr = (torch.from_numpy(x) for x in (u, v, r))
    one, many, truth = (
        score_states(tu, tv, grid, tr),
        score_ensemble(tu, tv, grid),
        score_truth(tu, grid),
    )
    for c, t in itertools.product(range(2), range(2)):
        fields, x = u[:, t], v[:, c, t]
        members = [restate(u[c, t], a, w, even) for a in x]
        expected = {name: sum(m[name] for m in members) / 3 for name in members[0]}
        against = [restate(r[c, t], a, w, even) for a in x]
        kept = [n for n in against[0] if n in ("rmse", "nrmse", "vrmse") or n[:8] == "spectrum"]
        expected |= {f"{n}_autoencoded": sum(m[n] for m in against) / 3 for n in kept}
        check(one.values, expected, c, t, even)
        expected = restate(u[c, t], x.mean(axis=0), w, even) | of_members(u[c, t], x, w)
        check(many.values, expected, c, t, even)
        assert many.binned["rank"][c, t].tolist() == pytest.approx(ranks(u[c, t], x))
        deviation = math.sqrt(average((u[c, t] - average(u[c, t], w)) ** 2, w))
        assert float(truth.values["std"][c, t]) == pytest.approx(deviation)
        if even:
            power = [shells(a, a) for a in x]
            found = one.binned["power"][c, t, : len(power[0])].numpy()
            assert found == pytest.approx(sum(power) / 3)
        expected = sum(sliced(fields, v[m, :, t], w) for m in range(3)) / 3
        assert float(one.joint["sliced_wasserstein"][t]) == pytest.approx(expected)
        expected = sliced(fields, v[:, :, t].mean(axis=0), w)
        assert float(many.joint["sliced_wasserstein"][t]) == pytest.approx(expected)
    assert set(one.binned) == {"power"}
    assert set(many.binned) == {"power", "rank"}
    assert set(one.joint) == set(many.joint) == {"sliced_wasserstein"}


def check(
    found: dict[str, torch.Tensor], expected: dict[str, float], c: int, t: int, every: bool
) -> None:
    """Compares the values of one field and lead; `every` metric found must be expected."""
    values = {name: float(x[c, t]) for name, x in found.items() if every or name in expected}
    assert values == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_perfect_forecast() -> None:
    u = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    v = u.expand(4, *u.shape)
    for scores in (score_states(u, v, autoencoded=u), score_ensemble(u, v)):
        for name, values in (scores.values | scores.joint).items():
            if name == "spread_skill":  # neither spread nor error
                assert values.isnan().all()
            elif name == "coverage":  # every rank is as likely
                assert values.numpy() == pytest.approx(3 / 5)
            else:
                best = name == "pearson" or name.startswith("correlation")
                assert values.numpy() == pytest.approx(float(best), abs=1e-6), name
    assert score_ensemble(u, v).binned["rank"].numpy() == pytest.approx(1 / 5)


def test_a_shifted_field() -> None:
    """Waves a_k cos(kx), moved by s cells: wave k by the phase φ_k = 2πks/n."""
    n, shift = 64, 3
    k = np.arange(1, n // 2 + 1)
    amplitude, phase = 1 / k, 2 * np.pi * k * shift / n
    wave = (amplitude[:, None] * np.cos(2 * np.pi * k[:, None] * np.arange(n) / n)).sum(axis=0)
    u = torch.from_numpy(wave).expand(1, 1, 8, n).contiguous()
    found = score_states(u, u.roll(shift, dims=-1)[None])
    power = amplitude**2 / np.where(k == n // 2, 1, 2)  # the cells see Nyquist's wave at its crests
    error = math.sqrt((power * (2 - 2 * np.cos(phase))).sum())
    relative = error / math.sqrt(power.sum())
    expected = {"rmse": error, "nrmse": relative, "vrmse": relative, "total": 0, "wasserstein": 0}
    expected["pearson"] = float((power * np.cos(phase)).sum() / power.sum())
    for band, (first, last) in zip(BANDS, ((1, 3), (4, 10), (11, 32))):
        expected[f"spectrum_{band}"] = 0
        expected[f"correlation_{band}"] = np.cos(phase[first - 1 : last]).mean()
    values = {name: float(found.values[name]) for name in expected}
    assert values == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert float(found.joint["sliced_wasserstein"]) < 1e-9
    moved = np.abs(wave - np.roll(wave, shift))
    assert float(found.values["linf"]) == pytest.approx(moved.max())
    assert float(found.values["mae"]) == pytest.approx(moved.mean())


def test_independent_fields() -> None:
    """Normal noise of deviation s against more of it: errors √2 s, no correlation, no distance."""
    s, generator = 0.5, torch.Generator().manual_seed(0)
    u, x = s * torch.randn(2, 1, 1, 512, 512, generator=generator)
    found = score_states(u, x[None])
    expected = {"rmse": math.sqrt(2) * s, "nrmse": math.sqrt(2), "vrmse": math.sqrt(2)}
    expected["mae"] = 2 * s / math.sqrt(math.pi)
    for name, value in expected.items():
        assert float(found.values[name]) == pytest.approx(value, rel=0.01), name
    for name in ("pearson", "total", "wasserstein", "correlation_high"):
        assert abs(float(found.values[name])) < 0.01, name
    assert float(found.joint["sliced_wasserstein"]) < 0.02
    assert abs(float(found.values["correlation_low"])) < 0.5  # a few dozen waves
    assert float(found.values["spectrum_high"]) < 0.2  # each shell has hundreds of waves
    extreme = math.sqrt(2) * s * math.sqrt(2 * math.log(512**2))  # of 512² normal numbers
    assert float(found.values["linf"]) == pytest.approx(extreme, rel=0.15)


@pytest.mark.parametrize("members", [2, 8])
def test_a_calibrated_gaussian_ensemble(members: int) -> None:
    """Truth and members N(c, s²) in every cell, around one pattern c."""
    s, generator = 0.7, torch.Generator().manual_seed(members)
    centre = torch.randn(1, 1, 400, 400, generator=generator)
    x = centre + s * torch.randn(members + 1, *centre.shape, generator=generator)
    found = score_ensemble(x[0], x[1:])
    expected = {
        "spread": s,
        "skill": s * math.sqrt((members + 1) / members),
        "spread_skill": 1,
        "crps": s / math.sqrt(math.pi),
        "energy": s / math.sqrt(2),
        "coverage": nominal_coverage(members)[0],
    }
    for name, value in expected.items():
        assert float(found.values[name]) == pytest.approx(value, rel=0.01), name
    ranks = found.binned["rank"][0, 0].numpy()
    assert ranks == pytest.approx(1 / (members + 1), rel=0.03)
