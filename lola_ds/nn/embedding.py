r"""Embeddings of scalars and coordinates.

The sine encoding of a scalar :math:`x` with :math:`F` features is

.. math:: \left( \sin(x f_0), \dots, \sin(x f_{F/2 - 1}),
    \cos(x f_0), \dots, \cos(x f_{F/2 - 1}) \right), \qquad f_i = 1000^{-i / (F/2 - 1)} .
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lola_ds.nn.layers import disable_autocast

__all__ = ["PositionalEmbedding", "ScalarEmbedding", "SineEncoding", "VectorEmbedding"]


class SineEncoding(nn.Module):
    """Encodes scalars with sines and cosines of geometric frequencies, always in float32.

    Arguments:
        features: The number F of features, even and at least 4.
        omega: The ratio between the highest frequency (1) and the lowest.

    Raises:
        ValueError: The number of features is odd or under 4.
    """

    freqs: Tensor

    def __init__(self, features: int, omega: float = 1e3) -> None:
        super().__init__()
        if features % 2 or features < 4:
            raise ValueError(f"sine encoding needs an even number of features >= 4, not {features}")
        exponents = torch.linspace(0, 1, features // 2, dtype=torch.float64)
        self.register_buffer("freqs", (omega**-exponents).to(torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Encodes scalars (*) as features (*, F)."""
        angles = x.to(self.freqs.dtype).unsqueeze(-1) * self.freqs
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class ScalarEmbedding(nn.Sequential):
    """Embeds a scalar: sine encoding, then two linear layers with SiLU between; float32.

    Arguments:
        features: The number F of features of the encoding and of the embedding.
    """

    def __init__(self, features: int) -> None:
        super().__init__(
            SineEncoding(features),
            nn.Linear(features, features),
            nn.SiLU(),
            nn.Linear(features, features),
        )

    @disable_autocast
    def forward(self, x: Tensor) -> Tensor:
        """Embeds scalars (B,) as features (B, F)."""
        return super().forward(x)


class VectorEmbedding(nn.Sequential):
    """Embeds a vector, such as the label, with two linear layers with SiLU between; float32.

    Arguments:
        in_features: The number D of components of the vector.
        features: The number F of features of the embedding.
    """

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__(nn.Linear(in_features, features), nn.SiLU(), nn.Linear(features, features))

    @disable_autocast
    def forward(self, x: Tensor) -> Tensor:
        """Embeds vectors (B, D) as features (B, F)."""
        return super().forward(x)


class PositionalEmbedding(nn.Sequential):
    """Embeds integer coordinates: sine encoding of each axis, concatenated, then linear; float32.

    Arguments:
        axes: The number N of coordinates.
        features: The number H of features of each axis's encoding and of the embedding.
    """

    def __init__(self, axes: int, features: int) -> None:
        super().__init__(
            SineEncoding(features), nn.Flatten(-2), nn.Linear(axes * features, features)
        )

    @disable_autocast
    def forward(self, x: Tensor) -> Tensor:
        """Embeds coordinates (*, N) as features (*, H)."""
        return super().forward(x)
