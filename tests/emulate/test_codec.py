"""Encoding and decoding of states, in batches of any size."""

from __future__ import annotations

import pytest
import torch
from test_emulator import known_states, make_small_autoencoder

from lola_ds.emulate.codec import Codec, fill
from lola_ds.fields import Standardize


def make_codec(compiled: bool = False) -> Codec:
    """Of f4 latents, random weights."""
    torch.manual_seed(0)
    standardize = Standardize([1.0, 0.5, 0.0], [0.5, 0.3, 2.0], {0: "log1p"})
    return Codec(make_small_autoencoder(), standardize, compiled=compiled)


@pytest.mark.parametrize("batch", [1, 5, 6, 16])
def test_few_numbers_of_states(batch: int) -> None:
    sizes = set()
    for n in range(1, batch + 1):
        x = torch.arange(n)
        filled = fill(x, batch)
        sizes.add(len(filled))
        assert n <= len(filled) <= min(batch, 2 * n - 1)
        assert torch.equal(filled[:n], x)
        assert (filled[n:] == n - 1).all()
    assert sizes == {1, batch} | {2**k for k in range(10) if 2**k < batch}


@pytest.mark.usefixtures("traced_only")
def test_compiled_states_are_the_same() -> None:
    """A graph for each level of the network and each of the sizes 1, 2 and 3."""
    plain, codec = make_codec(), make_codec(compiled=True)
    for steps in range(1, 6):
        x = known_states(steps)
        z, expected = codec.encode(x, 3), plain.encode(x, 3)
        torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)
        members = torch.stack([expected, 2 * expected])
        found = codec.decode(members, 3)
        torch.testing.assert_close(found, plain.decode(members, 3), rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3 * 3
