import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lola_ds.augment import Symmetry, WindowSpec, draw_symmetry, find_mirror

ALL = ("random_axis_flip", "random_axis_permute", "random_axis_roll")


def window(spec, sizes, frames=2, seed=0):
    shape = (len(spec.components), frames, *sizes)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def divergence(momentum):
    """Centred periodic divergence of a vector (N, L, *S)."""
    return sum(
        np.roll(part, -1, axis + 1) - np.roll(part, 1, axis + 1)
        for axis, part in enumerate(momentum)
    )


def test_flip_of_x_negates_momentum_x_and_swaps_the_sides_of_x():
    spec = WindowSpec((0, 1), 2)
    x = window(spec, (4, 6))
    flip = Symmetry((0, 1), (True, False), (0, 0))
    y = flip.window(x, spec)
    assert np.array_equal(y[0], x[0, :, ::-1])
    assert np.array_equal(y[1], -x[1, :, ::-1])
    assert np.array_equal(y[2], x[2, :, ::-1])
    codes = np.array([[0.0, 1.0], [2.0, 2.0]])
    assert flip.codes(codes).tolist() == [[1, 0], [2, 2]]


def test_permutation_moves_components_and_codes():
    spec = WindowSpec((0, 1, 2), 2)
    x = window(spec, (4, 4))
    swap = Symmetry((1, 0), (False, False), (0, 0))
    y = swap.window(x, spec)
    transposed = x.swapaxes(2, 3)
    for channel, origin in enumerate([0, 2, 1, 6, 5, 4, 3]):
        assert np.array_equal(y[channel], transposed[origin])
    assert swap.codes(np.array([[0, 1], [2, 2]])).tolist() == [[2, 2], [0, 1]]


def test_roll():
    spec = WindowSpec((0, 0), 2)
    x = window(spec, (4, 6))
    y = Symmetry((0, 1), (False, False), (3, 2)).window(x, spec)
    assert np.array_equal(y, np.roll(x, (3, 2), (2, 3)))


@pytest.mark.parametrize("dims", [2, 3])
def test_agrees_with_the_well(dims):
    from the_well.data.augmentation import RandomAxisFlip, RandomAxisPermute, RandomAxisRoll

    spec = WindowSpec((0, 1, 2), dims)
    x = torch.from_numpy(window(spec, (5,) * dims))
    codes = torch.tensor([[0, 1], [2, 2], [1, 0]][:dims])
    for permutation in itertools.permutations(range(dims)):
        for flips in itertools.product([False, True], repeat=dims):
            shifts = (2, 1, 4)[:dims]
            fields = [torch.movedim(part, 0, -1) for part in x.split([1, dims, dims**2])]
            fields[0], fields[2] = fields[0][..., 0], fields[2].unflatten(-1, (dims, dims))
            data = {
                "variable_fields": {rank: {"f": part} for rank, part in enumerate(fields)},
                "constant_fields": {},
                "boundary_conditions": codes,
            }
            data = RandomAxisPermute.permute(data, torch.tensor(permutation))
            data = RandomAxisFlip.flip(data, torch.tensor(flips))
            data = RandomAxisRoll.roll(data, dict(enumerate(shifts)))
            parts = [data["variable_fields"][rank]["f"] for rank in range(3)]
            parts = [parts[0][None], parts[1].movedim(-1, 0), parts[2].flatten(-2).movedim(-1, 0)]
            symmetry = Symmetry(permutation, flips, shifts)
            assert np.array_equal(symmetry.window(x.numpy(), spec), torch.cat(parts).numpy())
            expected = data["boundary_conditions"].numpy()
            assert np.array_equal(symmetry.codes(codes.numpy()), expected)


@settings(max_examples=40, deadline=None)
@given(dims=st.integers(1, 3), seed=st.integers(0, 2**62))
def test_commutes_with_the_divergence(dims, seed):
    spec = WindowSpec((1, 0), dims)
    x = window(spec, (6,) * dims)
    x[dims] = divergence(x[:dims])
    codes = np.full((dims, 2), 2)
    y = draw_symmetry(ALL, spec, (6,) * dims, codes, seed).window(x, spec)
    np.testing.assert_allclose(y[dims], divergence(y[:dims]), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**62), codes=st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_rolls_periodic_axes_only(seed, codes):
    sides = np.array(codes).reshape(2, 2)
    symmetry = draw_symmetry(ALL, WindowSpec((0,), 2), (8, 8), sides, seed)
    for axis, (low, high) in enumerate(symmetry.codes(sides)):
        assert symmetry.shifts[axis] == 0 or low == high == 2


def test_draws_cover_the_group_evenly():
    spec, codes = WindowSpec((0,), 2), np.full((2, 2), 2)
    drawn = [draw_symmetry(ALL, spec, (4, 4), codes, seed) for seed in range(4000)]
    counts = {}
    for symmetry in drawn:
        counts[symmetry] = counts.get(symmetry, 0) + 1
    assert len(counts) == 2 * 4 * 16
    assert max(counts.values()) < 65  # 31 expected
    assert draw_symmetry(ALL, spec, (4, 4), codes, 7) == drawn[7]


def test_fixed_axes_keep_their_direction():
    spec, codes = WindowSpec((0, 1), 3, fixed=(1,)), np.full((3, 2), 2)
    for seed in range(50):
        symmetry = draw_symmetry(ALL, spec, (4, 8, 4), codes, seed)
        assert symmetry.permutation[1] == 1
        assert not symmetry.flips[1]


def test_inputs_keep_their_values():
    spec = WindowSpec((0, 1), 2)
    x, codes = window(spec, (4, 4)), np.array([[0, 1], [2, 2]])
    before = x.copy(), codes.copy()
    for seed in range(8):
        symmetry = draw_symmetry(ALL, spec, (4, 4), codes, seed)
        assert symmetry.window(x, spec).dtype == x.dtype
        symmetry.codes(codes)
    assert np.array_equal(x, before[0])
    assert np.array_equal(codes, before[1])
    identity = draw_symmetry((), spec, (4, 4), codes, 0)
    assert np.array_equal(identity.window(x, spec), x)
    assert np.array_equal(identity.codes(codes), codes)


def test_mistakes_are_named():
    spec = WindowSpec((0,), 2)
    codes = np.zeros((2, 2))
    with pytest.raises(ValueError, match="unknown 'random_rotation'"):
        draw_symmetry(["random_rotation"], spec, (4, 6), codes, 0)
    with pytest.raises(ValueError, match=r"one size, this grid is \(4, 6\)"):
        draw_symmetry(["random_axis_permute"], spec, (4, 6), codes, 0)


def boussinesq(grid_y, names=("buoyancy", "pressure", "velocity_x", "velocity_y")):
    mirror = find_mirror(names, "xy", (1,), {"y": {"values": grid_y.tolist()}})
    return WindowSpec((0, 0, 1), 2, fixed=(1,), mirror=mirror)


def tendencies(x, grid_y, nu=0.1, kappa=0.2):
    """Right-hand sides of the Boussinesq equations for a window (4, L, X, Y), X periodic."""
    b, p, u, v = x.astype(np.float64)

    def dx(f):
        return (np.roll(f, -1, -2) - np.roll(f, 1, -2)) * f.shape[-2] / 8

    def dy(f):
        return np.gradient(f, grid_y, axis=-1)

    def transport(f):
        return -(u * dx(f) + v * dy(f))

    def laplacian(f):
        return dx(dx(f)) + dy(dy(f))

    return np.stack(
        [
            transport(b) + kappa * laplacian(b),
            dx(u) + dy(v),
            transport(u) + nu * laplacian(u) - dx(p),
            transport(v) + nu * laplacian(v) - dy(p) + b,
        ]
    )


def test_mirrored_buoyancy_is_a_symmetry_of_the_equations():
    """The mirrored state's tendencies are the tendencies, mirrored: ∂_t commutes with it."""
    grid_y = (1 - np.cos(np.pi * (np.arange(12) + 0.5) / 12)) / 2  # Chebyshev
    spec = boussinesq(grid_y)
    x = window(spec, (8, 12)).astype(np.float64)
    flip = Symmetry((0, 1), (False, True), (0, 0))
    found, expected = tendencies(flip.window(x, spec), grid_y), tendencies(x, grid_y)[..., ::-1]
    signs = np.array([-1, 1, 1, -1])[:, None, None, None]  # of b, divergence, u_x, u_y
    np.testing.assert_allclose(found, signs * expected, atol=1e-10)
    np.testing.assert_allclose(flip.window(flip.window(x, spec), spec), x, atol=1e-14)
    assert flip.window(x, spec)[0] == pytest.approx(1 - x[0, ..., ::-1])


def test_mirrored_buoyancy_is_an_option():
    grid_y = np.linspace(0, 4, 6)
    spec = boussinesq(grid_y)
    names = ("random_axis_flip", "random_axis_roll", "random_buoyancy_flip")
    codes = np.array([[2, 2], [0, 0]])
    draws = [draw_symmetry(names, spec, (6, 6), codes, seed).flips for seed in range(200)]
    assert {len([f for f in draws if f == flips]) > 30 for flips in set(draws)} == {True}
    assert len(set(draws)) == 4
    plain = [draw_symmetry(names[:2], spec, (6, 6), codes, seed).flips[1] for seed in range(50)]
    assert not any(plain)  # no flip along gravity unless the buoyancy goes with it
    for broken in (boussinesq(grid_y**2), boussinesq(grid_y, ("density", "pressure", "u", "v"))):
        with pytest.raises(ValueError, match="random_buoyancy_flip needs a field buoyancy"):
            draw_symmetry(names, broken, (6, 6), codes, 0)


def test_bits_of_bfloat16_are_negated_as_numbers():
    spec = WindowSpec((1,), 2)
    x = window(spec, (4, 4))
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    flip = Symmetry((1, 0), (True, False), (1, 0))
    found = flip.window(bits, spec).astype(np.uint32) << 16
    expected = flip.window((bits.astype(np.uint32) << 16).view(np.float32), spec)
    assert np.array_equal(found.view(np.float32), expected)
