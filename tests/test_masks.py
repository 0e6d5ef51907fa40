"""Context masks: laws against their probabilities, placement, reproducibility, errors."""

import math
from collections import Counter

import pytest
import torch

from lola_ds.masks import LAWS, ContextLaw, draw_context_masks

DRAWS = 4000
UNIFORM = torch.rand(DRAWS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def poisson(k: int, rate: float) -> float:
    return math.exp(-rate) * rate**k / math.factorial(k)


def probabilities(law: ContextLaw, length: int) -> dict[int, float]:
    """The law by brute force over the Poisson counts 0..59."""
    weights: Counter[int] = Counter()
    for k in range(60):
        if law.law == "poisson_mod":
            weights[k % (length - law.atleast) + law.atleast] += poisson(k, law.rate)
        elif law.atleast <= k < length:
            weights[k] += poisson(k, law.rate)
    total = sum(weights.values())
    return {c: w / total for c, w in weights.items()}


@pytest.mark.parametrize("name", ["poisson_mod", "poisson_truncated"])
@pytest.mark.parametrize(("rate", "atleast", "length"), [(2.0, 1, 5), (1.0, 2, 4), (3.5, 1, 2)])
def test_counts_follow_their_law(name: str, rate: float, atleast: int, length: int) -> None:
    law = ContextLaw(name, rate=rate, atleast=atleast)
    counts = Counter(draw_context_masks(law, length, UNIFORM).sum(dim=1).tolist())
    expected = probabilities(law, length)
    exact = dict(enumerate(law.probabilities(length).tolist(), atleast))
    assert exact == pytest.approx({c: expected.get(c, 0.0) for c in range(atleast, length)})
    assert set(counts) <= set(expected)
    for c, p in expected.items():
        deviation = math.sqrt(p * (1 - p) / DRAWS)
        assert abs(counts[c] / DRAWS - p) <= 4 * deviation + 1e-9


@pytest.mark.parametrize("rho", [0.0, 0.7, 1.0])
def test_known_frames_stand_at_the_start_with_probability_rho(rho: float) -> None:
    masks = draw_context_masks(ContextLaw(rho=rho), 5, UNIFORM)
    share = masks[:, 0].double().mean().item()
    assert (masks[:, 0] != masks[:, -1]).all()
    assert abs(share - rho) <= 4 * math.sqrt(rho * (1 - rho) / DRAWS)


@pytest.mark.parametrize(("rho", "mask"), [(1.0, [True, True, False]), (0.0, [False, True, True])])
def test_masks(rho: float, mask: list[bool]) -> None:
    law = ContextLaw(atleast=2, rho=rho)
    assert draw_context_masks(law, 3, UNIFORM[:2]).tolist() == [mask, mask]


def test_the_ends_of_the_uniform_law() -> None:
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-53, 1 - 2**-53]], dtype=torch.float64)
    for name in LAWS:
        masks = draw_context_masks(ContextLaw(name, rho=0.5), 5, ends)
        assert masks.tolist() == [[True, *[False] * 4], [False, *[True] * 4]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"law": "binomial"}, "binomial"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"atleast": 0}, "atleast=0"),
        ({"rho": 1.5}, "rho=1.5"),
    ],
)
def test_law_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContextLaw(**options)


def test_draw_refuses_short_windows() -> None:
    with pytest.raises(ValueError, match="leaves nothing to predict"):
        ContextLaw(atleast=3).probabilities(3)
