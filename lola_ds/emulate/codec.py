"""Conversion between physical states and what a model sees: standardised states or latents.

Symbols: M members, C fields, C' channels of latents, T states, *S and *S' spatial axes.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from lola_ds.emulate.memory import working_bytes
from lola_ds.fields import Standardize
from lola_ds.models import Autoencoder
from lola_ds.nn.compilation import compile_blocks

__all__ = ["Codec", "fill", "fingerprint"]


class Codec:
    """Converts physical states to what a model sees, and back: standardised states or latents.

    Arguments:
        autoencoder: Maps standardised states to latents and back; None for a model of pixels.
        standardize: The fields' transform and statistics.
        device: Where both run.
        compiled: Whether to compile the autoencoder, which is then given states by `fill`.

    Raises:
        ValueError: The autoencoder cannot be compiled.
    """

    def __init__(
        self,
        autoencoder: Autoencoder | None,
        standardize: Standardize,
        device: torch.device | str = "cpu",
        compiled: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.autoencoder = None if autoencoder is None else autoencoder.to(self.device).eval()
        self.compiled = False
        if compiled and self.autoencoder is not None:
            compile_blocks(self.autoencoder)
            self.compiled = True
        self.standardize = standardize.to(self.device)

    @torch.no_grad()
    def encode(self, x: Tensor, batch: int = 16) -> Tensor:
        """Encodes physical states.

        Arguments:
            x: The states, with shape (C, T, *S).
            batch: The number of states that are encoded at a time.

        Returns:
            Latents or standardised states, with shape (C', T, *S').
        """
        pieces = []
        for piece in x.transpose(0, 1).split(batch):
            z = self.standardize(self._filled(piece, batch).to(self.device))
            z = z if self.autoencoder is None else self.autoencoder.encode(z)
            pieces.append(z[: len(piece)])
        return torch.cat(pieces).transpose(0, 1)

    @torch.no_grad()
    def decode(self, z: Tensor, batch: int = 16, device: torch.device | str = "cpu") -> Tensor:
        """Decodes states, `batch` at a time, into the result.

        Arguments:
            z: Latents or standardised states, with shape (M, C', T, *S').
            batch: The number of states that are decoded at a time.
            device: The device of the result.

        Returns:
            Physical states in float32, with shape (M, C, T, *S).
        """
        M, T = z.shape[0], z.shape[2]
        out = None
        for start in range(0, M * T, batch):
            index = torch.arange(start, min(start + batch, M * T), device=z.device)
            m, t = index // T, index % T
            x = self._filled(z[m, :, t], batch)
            x = x if self.autoencoder is None else self.autoencoder.decode(x).float()
            x = self.standardize.inverse(x[: len(m)]).to(device)
            if out is None:
                out = x.new_empty(M, x.shape[1], T, *x.shape[2:])
            out[m.to(device), :, t.to(device)] = x
        assert out is not None
        return out

    def _filled(self, x: Tensor, batch: int) -> Tensor:
        return fill(x, batch) if self.compiled else x

    def states(self, z: Tensor, units: str) -> Tensor:
        """Decodes states all at once and differentiably.

        Arguments:
            z: Latents or standardised states, with shape (N, C', *S').
            units: The units of the result: `standardised` or `physical`.

        Returns:
            States in float32, with shape (N, C, *S).
        """
        x = z.float() if self.autoencoder is None else self.autoencoder.decode(z.float())
        return x if units == "standardised" else self.standardize.inverse(x)

    def reconstruct(self, x: Tensor, batch: int = 16) -> Tensor:
        """Encodes and decodes states, which shows the autoencoder's own error.

        Arguments:
            x: Physical states, with shape (C, T, *S).
            batch: The number of states that go through the autoencoder at a time.

        Returns:
            Physical states, with the shape and on the device of `x`.

        Raises:
            ValueError: There is no autoencoder.
        """
        if self.autoencoder is None:
            raise ValueError("a model of pixels has no autoencoder to reconstruct with")
        return self.decode(self.encode(x, batch)[None], batch, x.device)[0]

    def identity(self) -> dict[str, str]:
        """Returns hashes of the weights and statistics, and the transforms."""
        weights = {} if self.autoencoder is None else {"autoencoder": fingerprint(self.autoencoder)}
        transform = dict(sorted(self.standardize.transform.items()))
        return {**weights, "statistics": fingerprint(self.standardize), "transform": str(transform)}

    def decoding_bytes(self, z: Tensor) -> int:
        """Returns the bytes that decoding one state takes.

        Arguments:
            z: Latents or standardised states, with shape (M, C', T, *S'); the first one is decoded.
        """
        network = nn.Sequential(self.standardize, self.autoencoder or nn.Identity())
        return working_bytes(network, lambda: self.decode(z[:1, :, :1]), self.device)


def fill(x: Tensor, batch: int) -> Tensor:
    """Repeats the last state until their number is a power of two, or `batch`.

    Compiled networks are then called with few different batch sizes.

    Arguments:
        x: At most `batch` states, with shape (B, ...).
        batch: The largest number of states.

    Returns:
        States, with shape (B', ...).
    """
    missing = min(batch, 1 << (len(x) - 1).bit_length()) - len(x)
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x


def fingerprint(module: nn.Module) -> str:
    """Returns a hash of a module's parameters and buffers, non-persistent ones included."""
    digest = hashlib.blake2b(digest_size=8)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
