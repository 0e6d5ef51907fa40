"""The optimizers that see one whole tensor at a time.

A rule makes, for one parameter, an optimizer of that parameter alone. Its only parameter, the leaf,
holds the weights to evaluate, average and save: the parameter's own memory, perhaps seen in another
shape, except for schedule-free AdamW, whose gradients are taken elsewhere.

    soap           Vyas et al., 2024: Adam in the eigenbasis of Shampoo's preconditioner (heavyball)
    psgd           Li, 2015: a Kronecker-factored preconditioner fitted by noise (heavyball)
    muon           Jordan et al., 2024: orthogonalised momentum (torch); vectors take AdamW
    schedule_free  Defazio et al., 2024

All of them but the last mix the entries of a matrix, so a slice of it is not enough.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lola_ds.train.optim.schedule_free import ScheduleFreeAdamW

Rule = Callable[[Tensor], torch.optim.Optimizer]


def make_rule(config: dict[str, Any]) -> Rule:
    """The rule of `optim.optimizer`, with the keys of the `optim` group."""
    return partial(_RULES[config["optimizer"]], config)


def adamw(config: dict[str, Any], parameters: Any) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019), fused; elementwise, so any slices will do.

    The learning rate starts at 0: the loop sets it before every step.
    """
    return torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=(config["betas"][0], config["betas"][1]),
        weight_decay=config["weight_decay"],
        fused=True,
    )


def _soap(config: dict[str, Any], parameter: Tensor) -> torch.optim.Optimizer:
    """One preconditioner for each axis of the tensor no longer than `precondition_dim`."""
    optimizer = _heavyball().SOAP(
        [_leaf(parameter)],
        lr=0.0,
        betas=tuple(config["betas"]),
        shampoo_beta=config["precondition_beta"],
        weight_decay=config["weight_decay"],
        precondition_frequency=config["precondition_frequency"],
        max_precond_dim=config["precondition_dim"],
        merge_dims=False,
    )
    # The eigenvectors of the first gradient's Gram matrix are arbitrary where it has no rank: they
    # would turn rounding errors, which depend on the number of ranks, into other steps. From (a
    # trace of) the identity, the basis is a continuous function of the gradients.
    optimizer.param_groups[0]["init_factor"] = 1e-30
    return optimizer


def _psgd(config: dict[str, Any], parameter: Tensor) -> torch.optim.Optimizer:
    """One triangular factor for each axis of the tensor no longer than `precondition_dim`."""
    return _heavyball().PSGDKron(
        [_leaf(parameter)],
        lr=0.0,
        beta=config["betas"][0],
        weight_decay=config["weight_decay"],
        preconditioner_update_probability=partial(
            _update_probability, lowest=1 / config["precondition_frequency"]
        ),
        max_size_triangular=config["precondition_dim"],
        merge_dims=False,
        delayed=True,
        cached=False,  # the cache is memory that nothing has written until late in a run
    )


def _update_probability(step: int, lowest: float) -> float:
    """PSGD fits its preconditioner at every step in the beginning, then ever less often."""
    return max(lowest, 0.999**step)


def _muon(config: dict[str, Any], parameter: Tensor) -> torch.optim.Optimizer:
    """Kernels are matrices of (outputs, all inputs); updates have the size that AdamW's have."""
    if parameter.ndim < 2 or parameter.numel() == max(parameter.shape):
        return adamw(config, [_leaf(parameter)])
    return torch.optim.Muon(
        [_leaf(parameter, (parameter.shape[0], -1))],
        lr=0.0,
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        adjust_lr_fn="match_rms_adamw",
    )


def _schedule_free(config: dict[str, Any], parameter: Tensor) -> ScheduleFreeAdamW:
    return ScheduleFreeAdamW(
        [nn.Parameter(parameter.detach().clone())],
        betas=(config["betas"][0], config["betas"][1]),
        weight_decay=config["weight_decay"],
    )


_RULES: dict[str, Callable[[dict[str, Any], Tensor], torch.optim.Optimizer]] = {
    "soap": _soap,
    "psgd": _psgd,
    "muon": _muon,
    "schedule_free": _schedule_free,
}


def _leaf(parameter: Tensor, shape: tuple[int, ...] | None = None) -> nn.Parameter:
    """A parameter in the same memory, without the original's gradient."""
    return nn.Parameter(parameter.detach().view(parameter.shape if shape is None else shape))


def _heavyball() -> Any:
    """heavyball, its kernels run eagerly.

    Compiled, they start minutes later and differ in the last bits from one machine to the next.
    """
    import heavyball

    heavyball.utils.compile_mode = None
    return heavyball
