r"""Transforms of physical fields and their standardisation.

Positive fields (density, pressure, energy) are skewed: a pointwise, invertible transform :math:`f`
makes their distribution closer to a Gaussian. A network then sees the standardised field

.. math:: z_c = \frac{f_c(x_c) - \mu_c}{s_c}

where the mean :math:`\mu_c` and standard deviation :math:`s_c` of each channel :math:`c` are those
of the *transformed* field over the training split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["TRANSFORMS", "Standardize"]

LOG_EPSILON = 1e-6

Pointwise = Callable[[Tensor], Tensor]


def _log_eps(x: Tensor) -> Tensor:
    return torch.log(x + LOG_EPSILON)


def _exp_eps(z: Tensor) -> Tensor:
    return torch.exp(z) - LOG_EPSILON


TRANSFORMS: dict[str, tuple[Pointwise, Pointwise]] = {
    "log": (torch.log, torch.exp),
    "log_eps": (_log_eps, _exp_eps),
    "log1p": (torch.log1p, torch.expm1),
    "arcsinh": (torch.arcsinh, torch.sinh),
}
"""Pointwise transforms by name: (physical -> transformed, transformed -> physical)."""


class Standardize(nn.Module):
    """Maps physical fields to standardised ones and back; inputs are never changed in place.

    Arguments:
        mean: The mean of each transformed channel, with length C.
        std: The standard deviation of each transformed channel, with length C, positive.
        transform: The name of the transform (see `TRANSFORMS`) of some channels, by index.

    Raises:
        ValueError: The lengths differ, a deviation is not positive, a channel does not exist or
            a transform is unknown.

    Example:
        >>> standardize = Standardize(mean=[1.2, 0.0], std=[0.5, 0.5], transform={0: "log1p"})
        >>> z = standardize(x)  # (B, 2, *S), channels along dim 1
        >>> x = standardize.inverse(z)
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        transform: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__()
        transform = {int(c): name for c, name in dict(transform or {}).items()}
        _check_statistics(mean, std, transform)
        self.transform = transform
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        """Standardises physical fields.

        Arguments:
            x: Physical fields, with C channels along axis `dim`, of any dtype.
            dim: The channel axis.

        Returns:
            Standardised fields, float32, with the shape of `x`.
        """
        x = self._apply_pointwise(x.to(torch.float32), dim, direction=0)
        return (x - self._along(self.mean, x, dim)) / self._along(self.std, x, dim)

    def inverse(self, z: Tensor, dim: int = 1) -> Tensor:
        """Recovers physical fields from standardised ones.

        Arguments:
            z: Standardised fields, with C channels along axis `dim`.
            dim: The channel axis.

        Returns:
            Physical fields, float32, with the shape of `z`.
        """
        z = z.to(torch.float32)
        z = z * self._along(self.std, z, dim) + self._along(self.mean, z, dim)
        return self._apply_pointwise(z, dim, direction=1)

    def _apply_pointwise(self, x: Tensor, dim: int, direction: int) -> Tensor:
        if x.shape[dim] != len(self.mean):
            raise ValueError(
                f"axis {dim} of shape {tuple(x.shape)} should hold {len(self.mean)} channels, "
                "one for each mean of the statistics"
            )
        if not self.transform:
            return x
        channels = list(x.unbind(dim))
        for c, name in self.transform.items():
            channels[c] = TRANSFORMS[name][direction](channels[c])
        return torch.stack(channels, dim)

    @staticmethod
    def _along(values: Tensor, x: Tensor, dim: int) -> Tensor:
        shape = [1] * x.ndim
        shape[dim] = -1
        return values.view(shape)


def _check_statistics(
    mean: Sequence[float], std: Sequence[float], transform: Mapping[int, str]
) -> None:
    if len(mean) != len(std):
        raise ValueError(f"stats: {len(mean)} means but {len(std)} standard deviations")
    if not all(s > 0 for s in std):
        raise ValueError(f"stats.std={list(std)}: standard deviations must be positive")
    for c, name in transform.items():
        if not 0 <= c < len(mean):
            raise ValueError(f"transform: channel {c} does not exist among {len(mean)} channels")
        if name not in TRANSFORMS:
            raise ValueError(
                f"transform: unknown '{name}' for channel {c}; known: {', '.join(TRANSFORMS)}"
            )
