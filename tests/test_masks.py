"""Context masks: laws against their probabilities, placement, reproducibility, errors."""

import math
from collections import Counter

import pytest
import torch

from lola_ds.masks import ContextLaw, draw_context_masks

DRAWS = 4000


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
    generator = torch.Generator().manual_seed(0)
    counts = Counter(law.draw(length, generator)[0] for _ in range(DRAWS))
    expected = probabilities(law, length)
    assert set(counts) <= set(expected)
    for c, p in expected.items():
        deviation = math.sqrt(p * (1 - p) / DRAWS)
        assert abs(counts[c] / DRAWS - p) <= 4 * deviation + 1e-9


@pytest.mark.parametrize("rho", [0.0, 0.7, 1.0])
def test_known_frames_stand_at_the_start_with_probability_rho(rho: float) -> None:
    law, generator = ContextLaw(rho=rho), torch.Generator().manual_seed(0)
    share = sum(law.draw(5, generator)[1] for _ in range(DRAWS)) / DRAWS
    assert abs(share - rho) <= 4 * math.sqrt(rho * (1 - rho) / DRAWS)


@pytest.mark.parametrize(("rho", "mask"), [(1.0, [True, True, False]), (0.0, [False, True, True])])
def test_masks(rho: float, mask: list[bool]) -> None:
    law = ContextLaw(atleast=2, rho=rho)
    assert draw_context_masks(law, 3, [None, None]).tolist() == [mask, mask]


def test_a_mask_depends_on_its_generator_only() -> None:
    law = ContextLaw(rho=0.5)
    seeds = [3, 1, 4, 1, 5]
    together = draw_context_masks(law, 6, [torch.Generator().manual_seed(s) for s in seeds])
    apart = [draw_context_masks(law, 6, [torch.Generator().manual_seed(s)]) for s in seeds]
    assert torch.equal(together, torch.cat(apart))


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
        ContextLaw(atleast=3).draw(3)
