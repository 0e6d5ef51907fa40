"""The emulator in physical units, with small random models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lola_ds.emulate.emulator import Emulator
from lola_ds.emulate.guidance import make_guidance
from lola_ds.emulate.options import SamplingOptions
from lola_ds.fields import Standardize
from lola_ds.models import (
    Autoencoder,
    Denoiser,
    Surrogate,
    make_autoencoder,
    make_denoiser,
    make_surrogate,
)

FIELDS, SIDE, LENGTH = 3, 16, 4


def make_emulator(kind: str, latent: bool = True, **options: object) -> Emulator:
    """A tiny emulator with random weights: f4 latents, windows of 4 states."""
    torch.manual_seed(0)
    channels = 4 if latent else FIELDS
    network = {"channels": channels, "spatial": 3, "label_features": 5, "emb_features": 16}
    network |= {"hid_channels": 32, "hid_blocks": 2, "attention_heads": 2}
    model: Surrogate | Denoiser
    if kind == "surrogate":
        model = make_surrogate(**network, patch_size=[1, 1, 1] if latent else [1, 4, 4])
    else:
        model = make_denoiser(
            **network,
            schedule={"name": "log_logit", "sigma_min": 1e-3, "sigma_max": 1e3},
            patch_size=[1, 1, 1] if latent else [1, 4, 4],
        )
    for parameter in model.parameters():  # away from the initial near-identity
        parameter.data += 0.05 * torch.randn_like(parameter)
    autoencoder = make_small_autoencoder() if latent else None
    standardize = Standardize([1.0, 0.5, 0.0], [0.5, 0.3, 2.0], {0: "log1p"})
    return Emulator(model, autoencoder, standardize, {"length": LENGTH, "stride": 2}, **options)


def make_small_autoencoder() -> Autoencoder:
    return make_autoencoder(
        pix_channels=FIELDS, lat_channels=4, spatial=2, hid_channels=[8, 8, 8], hid_blocks=[1, 1, 1]
    )


def known_states(count: int = 1) -> Tensor:
    x = torch.rand(FIELDS, count, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    return x + 0.5


LABEL = torch.tensor([1.4, 2.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("kind", ["surrogate", "diffusion"])
@pytest.mark.parametrize("latent", [True, False])
def test_rollout_gives_the_states_after_the_known_one(kind: str, latent: bool) -> None:
    emulator = make_emulator(kind, latent)
    x = emulator.rollout(known_states(), LABEL, steps=5, members=2, sampling_steps=3)
    assert x.shape == (2, FIELDS, 5, SIDE, SIDE)
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()
    same = torch.equal(x[0], x[1])
    assert same is (kind == "surrogate")
    assert emulator.generative is (kind == "diffusion")


def test_the_states_are_those_of_a_rollout_by_hand() -> None:
    """Two windows of a latent surrogate, frame by frame."""
    emulator = make_emulator("surrogate")
    model, autoencoder, standardize = (
        emulator.model,
        emulator.codec.autoencoder,
        emulator.codec.standardize,
    )
    x0 = known_states(2)
    z = autoencoder.encode(standardize(x0.transpose(0, 1))).transpose(0, 1)[None]
    frames = z
    for _ in range(2):
        window = torch.zeros(1, 4, LENGTH, 4, 4)
        known = frames[:, :, -2:]
        window[:, :, :2] = known
        mask = (torch.arange(LENGTH) < 2).view(1, 1, -1, 1, 1)
        with torch.no_grad():
            y = model(window, mask, LABEL[None])
        frames = torch.cat([frames, y[:, :, 2:]], dim=2)
    with torch.no_grad():
        expected = standardize.inverse(autoencoder.decode(frames[0, :, 2:5].transpose(0, 1)))
    actual = emulator.rollout(x0, LABEL, steps=3, context=2, overlap=2, batch=2)
    torch.testing.assert_close(actual[0], expected.transpose(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ab", "ddpm"])
def test_members_depend_on_the_seed_and_their_number_alone(sampler: str) -> None:
    emulator = make_emulator("diffusion")
    options = {"steps": 4, "sampling_steps": 4, "sampler": sampler, "seed": 7}
    together = emulator.rollout(known_states(), LABEL, members=5, **options)
    for batch in (1, 2):
        apart = emulator.rollout(known_states(), LABEL, members=5, batch=batch, **options)
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)
    fewer = emulator.rollout(known_states(), LABEL, members=2, **options)
    torch.testing.assert_close(fewer, together[:2], rtol=1e-4, atol=1e-4)
    other = emulator.rollout(known_states(), LABEL, members=2, **{**options, "seed": 8})
    assert (other - together[:2]).abs().max() > 1e-2


def test_one_known_state_may_come_without_its_time_axis() -> None:
    emulator = make_emulator("surrogate", latent=False)
    x = known_states(3)
    expected = emulator.rollout(x[:, 2], LABEL, steps=2)
    assert torch.equal(emulator.rollout(x, LABEL, steps=2), expected)  # the last one is used


def test_inputs_are_left_as_they_are() -> None:
    emulator = make_emulator("diffusion", label_log=[0])
    x, label = known_states(), LABEL.clone()
    before = x.clone()
    emulator.rollout(x, label, steps=2, sampling_steps=2)
    assert torch.equal(x, before)
    assert torch.equal(label, LABEL)


def test_the_model_sees_the_logarithm_of_chosen_scalars() -> None:
    x = known_states()
    plain = make_emulator("surrogate").rollout(x, LABEL, steps=2)
    logged = LABEL.clone()
    logged[[0, 2]] = logged[[0, 2]].exp()
    other = make_emulator("surrogate", label_log=[0, 2]).rollout(x, logged, steps=2)
    torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("context", "overlap"), [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_progress_counts_every_window(context: int, overlap: int) -> None:
    emulator = make_emulator("diffusion", latent=False)
    for steps in (1, 3, 4, 8):
        counts: list[int] = []
        emulator.rollout(
            known_states(3), LABEL, steps, members=3, context=context, overlap=overlap,
            sampling_steps=1, batch=2, progress=counts.append,
        )  # fmt: skip
        assert sum(counts) == 3 * emulator.windows(steps, context, overlap)


def test_reconstruction_is_the_autoencoder_in_physical_units() -> None:
    emulator = make_emulator("surrogate")
    x = known_states(5)
    with torch.no_grad():
        y, _ = emulator.codec.autoencoder(emulator.codec.standardize(x.transpose(0, 1)))
    expected = emulator.codec.standardize.inverse(y).transpose(0, 1)
    for batch in (1, 2, 16):
        actual = emulator.reconstruct(x, batch=batch)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_mistakes_are_refused() -> None:
    emulator = make_emulator("surrogate", latent=False)
    x = known_states(2)
    with pytest.raises(ValueError, match="neither"):
        emulator.rollout(x[0], LABEL, steps=2)
    with pytest.raises(ValueError, match="neither"):
        emulator.rollout(x[:2], LABEL, steps=2)
    with pytest.raises(ValueError, match="context=3"):
        emulator.rollout(x, LABEL, steps=2, context=3)
    with pytest.raises(ValueError, match="overlap=4"):
        emulator.rollout(x, LABEL, steps=2, overlap=LENGTH)
    with pytest.raises(ValueError, match="steps=0"):
        emulator.rollout(x, LABEL, steps=0)
    with pytest.raises(ValueError, match="sampler='rk4'"):
        make_emulator("diffusion").rollout(x, LABEL, steps=1, sampler="rk4")
    with pytest.raises(ValueError, match="no autoencoder"):
        emulator.reconstruct(x)


@pytest.mark.parametrize("sampler", ["ab", "ddpm"])
@pytest.mark.parametrize("batch", [1, 2, 4, 16])
def test_forecasts_side_by_side_are_those_made_alone(sampler: str, batch: int) -> None:
    """Two forecasts of three members in batches that mix them, window by window."""
    emulator = make_emulator("diffusion", label_log=[0])
    x, labels = known_states(2).transpose(0, 1), torch.stack([LABEL, LABEL + 1])
    options = {"steps": 8, "members": 3, "sampling_steps": 2, "sampler": sampler, "overlap": 2}
    windows = list(
        emulator.stream(x, labels, SamplingOptions(**options), seeds=[7, 8], batch=batch)
    )
    assert [z.shape[3] for z in windows] == [3, 2, 2, 1]
    together = torch.cat(windows, dim=3)
    assert together.shape == (2, 3, 4, 8, 4, 4)
    for z, known, label, seed in zip(together, x, labels, (7, 8)):
        alone = emulator.rollout(known, label, seed=seed, **options)
        pieces = [emulator.decode(z[:, :, t : t + 3], batch=2) for t in range(0, 8, 3)]
        torch.testing.assert_close(torch.cat(pieces, dim=2), alone, rtol=1e-3, atol=1e-3)


def test_the_memory_of_a_member_and_of_a_state_is_estimated() -> None:
    emulator = make_emulator("diffusion")
    z = next(emulator.stream(known_states()[None], LABEL[None], SamplingOptions(steps=1)))
    assert emulator.codec.decoding_bytes(z[0]) >= 6 * 4 * 8 * SIDE * SIDE  # 8 channels, full size
    window = 4 * LENGTH * 4 * 4 * 4
    assert emulator.member_bytes(known_states(), LABEL, SamplingOptions()) > 18 * window
    assert not any(m._forward_hooks for m in emulator.model.modules())


def test_members_go_alike_through_samplers_that_draw_noise() -> None:
    for sampler in ("ddpm", "pc"):
        emulator = make_emulator("diffusion", latent=False)
        options = {"steps": 4, "sampling_steps": 2, "sampler": sampler, "seed": 3}
        together = emulator.rollout(known_states(), LABEL, members=3, batch=16, **options)
        apart = emulator.rollout(known_states(), LABEL, members=3, batch=1, **options)
        fewer = emulator.rollout(known_states(), LABEL, members=2, batch=2, **options)
        assert torch.equal(together, apart)
        assert torch.equal(together[:2], fewer)
        assert not torch.equal(together[0], together[1])


def test_forecasts_have_names_in_xarray() -> None:
    emulator = make_emulator("surrogate")
    emulator.fields, emulator.axes = ["density", "pressure", "energy"], ["x", "y"]
    states = emulator.rollout(known_states(), LABEL, steps=2, members=2)
    found = emulator.to_xarray(states, step=0.5, coordinates={"x": range(SIDE)})
    assert list(found.data_vars) == emulator.fields
    assert found["pressure"].dims == ("member", "lead", "x", "y")
    assert found["lead"].values.tolist() == [1, 2]
    assert found["time"].values.tolist() == [0.5, 1.0]
    assert (found["energy"].sel(member=1, lead=2).values == states[1, 2, 1].numpy()).all()
    with pytest.raises(ValueError, match="C=3 fields"):
        emulator.to_xarray(states[0])


def test_the_identity_follows_weights_statistics_and_precision() -> None:
    emulator = make_emulator("diffusion")
    before = emulator.identity()
    assert make_emulator("diffusion").identity() == before
    next(emulator.model.parameters()).data.flatten()[0] += 1e-6
    window = {"length": LENGTH, "stride": 2}
    codec = emulator.codec
    other = Emulator(emulator.model, codec.autoencoder, codec.standardize, window)
    after = other.identity()
    assert [key for key in before if before[key] != after[key]] == ["model"]
    codec.standardize.mean += 1
    assert other.identity()["statistics"] != before["statistics"]
    rounded = make_emulator("diffusion", precision="bf16").identity()
    assert rounded == {**before, "precision": "bf16"}


@pytest.mark.parametrize("kind", ["surrogate", "diffusion"])
def test_lower_precision_stays_close(kind: str) -> None:
    plain, short = (make_emulator(kind, precision=p) for p in ("fp32", "bf16"))
    expected, x = (e.rollout(known_states(), LABEL, 3, sampling_steps=4) for e in (plain, short))
    assert x.dtype == torch.float32
    assert 0 < (x - expected).norm() / expected.norm() < 3e-2
    with pytest.raises(ValueError, match="precision=fp16 is unknown; choose fp32 or bf16"):
        make_emulator(kind, precision="fp16")


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(
    ("kind", "precision", "error"), [("surrogate", "fp32", 1e-5), ("diffusion", "bf16", 1e-2)]
)
def test_compiled_forecasts_are_the_same(kind: str, precision: str, error: float) -> None:
    plain, emulator = (make_emulator(kind, precision=precision, compiled=c) for c in (False, True))
    graphs = torch._dynamo.utils.counters["stats"]
    options = {"steps": 4, "members": 3, "sampling_steps": 2, "batch": 2}
    expected, found = (e.rollout(known_states(), LABEL, **options) for e in (plain, emulator))
    assert (found - expected).norm() <= error * expected.norm()
    count = graphs["unique_graphs"]
    assert count >= 2  # of the model and of the autoencoder
    assert emulator.identity() == plain.identity()
    emulator.rollout(known_states(), LABEL, **options)
    with emulator.uncompiled():
        emulator.rollout(known_states(), LABEL, **{**options, "members": 1, "batch": 1})
    assert graphs["unique_graphs"] == count


@pytest.mark.usefixtures("traced_only")
def test_guided_forecasts_run_uncompiled() -> None:
    """Second derivatives of compiled networks do not exist."""
    guidance = make_guidance(method="mmps", operator="subsample", every=4, std=0.5)
    truth, results = known_states(3), []
    for compiled in (False, True):
        emulator = make_emulator("diffusion", compiled=compiled)
        observations = emulator.observe(truth, guidance)
        options = {"guidance": guidance, "observations": observations, "sampling_steps": 2}
        results.append(emulator.rollout(known_states(), LABEL, steps=3, **options))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
