"""Published weights load strictly and give their expected outputs, to 1e-5 in float32."""

from types import SimpleNamespace

import pytest
import torch
from lola_runs import assert_relative, load_run, needs_runs

from lola_ds.emulate import rollout, sample
from lola_ds.models import make_autoencoder, make_denoiser, make_surrogate
from lola_ds.objectives import AutoencoderObjective

pytestmark = needs_runs


@torch.no_grad()
def test_autoencoder() -> None:
    config, state, io = load_run("ae_euler_dcae_f4c8")
    model = make_autoencoder(**config["ae"], periodic=config["dataset"]["periodic"]).eval()
    model.load_state_dict(state)
    y, z = model(io["x"])
    assert_relative(z, io["z"])
    assert_relative(y, io["y"])
    assert_relative(model.encode(io["x"]), io["z"])
    assert_relative(model.decode(io["z"]), io["y"])

    batch = SimpleNamespace(
        x=io["x"].unsqueeze(2), seed=torch.arange(2), weight=torch.ones(2), label=None
    )
    for name, losses, weights in [
        ("loss_vrmse", ["vrmse"], [1.0]),
        ("loss_mae_similarity", ["mae", "similarity"], [1.0, 0.1]),
    ]:
        loss, _ = AutoencoderObjective(model, losses, weights).eval()(batch)
        assert_relative(loss, io[name])


@torch.no_grad()
def test_denoiser_and_sampling() -> None:
    config, state, io = load_run("dm_rb_f4c8_vit")
    model = make_denoiser(**config["denoiser"]).eval()
    model.load_state_dict(state)
    q = model(io["x_t"], io["t"], mask=io["mask"], label=io["label"])
    assert_relative(q.mean, io["mean"])
    assert_relative(q.var, io["var"])

    x_obs = torch.zeros_like(io["x1"])
    x_obs[:, :, :1] = io["x_obs"]
    mask = (torch.arange(5) < 1).view(1, 1, 5, 1, 1)
    options = {"label": io["label"], "sampler": "ab", "steps": 8}
    assert_relative(sample(model, mask, x_obs, x_1=io["x1"], **options), io["x0"])


@torch.no_grad()
@pytest.mark.parametrize("context", [1, 2])
def test_surrogate_and_rollout(context: int) -> None:
    config, state, io = load_run("sm_euler_pixel_vit")
    model = make_surrogate(**config["surrogate"]).eval()
    model.load_state_dict(state)
    assert_relative(model(io["x"], io["mask"], io["label"]), io["y"])

    x = rollout(
        lambda mask, x_obs, i: model(x_obs, mask, io["label"][:1]),
        io["traj"],
        window=5,
        frames=9,
        context=context,
        overlap=context,
    )
    assert_relative(x, io[f"rollout_{context}_{context}"])
