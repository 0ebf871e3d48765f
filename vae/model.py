"""p(x, z) = p(z) p(x | z) and q(z | x). Nothing about gradients, nothing about estimators."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from . import categorical
from .networks import Networks
from .validation import Count, validated


class CategoricalVAE(nn.Module):
    """A VAE whose latent layer is N independent K-way categoricals, with Bernoulli pixels.

    q(z | x) = prod_n Cat(z_n | encode(x)_n) and p(x | z) = prod_d Bernoulli(x_d | decode(z)_d).
    The prior p(z) is uniform, or N categoricals with learned logits. All densities are in nats per
    image: summed over pixels and latents. On pixels that are not 0 or 1 the Bernoulli term is a
    cross-entropy and no likelihood.
    """

    prior_logits: Tensor  # (N, K)

    precision: torch.dtype | None = None
    """Where set, the two networks run under autocast in it; all that follows stays float32."""

    @validated
    def __init__(
        self,
        networks: Networks,
        latents: Count,
        categories: Annotated[int, Field(ge=2)],
        prior: Literal["uniform", "learned"] = "uniform",
        image_shape: Annotated[tuple[Count, Count], Field(strict=False)] = (28, 28),  # or a list
    ) -> None:
        super().__init__()
        self.latents, self.categories, self.image_shape = latents, categories, image_shape
        self.encoder = networks.encoder(image_shape, latents * categories)
        self.decoder = networks.decoder(image_shape, latents * categories)
        uniform = torch.zeros(latents, categories)
        if prior == "learned":
            self.prior_logits = nn.Parameter(uniform)
        else:
            self.register_buffer("prior_logits", uniform, persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """Logits of q(z | x): images (B, D) in [0, 1] -> (B, N, K)."""
        return self._run(self.encoder, x).unflatten(-1, (self.latents, self.categories))

    def decode(self, z: Tensor) -> Tensor:
        """Pixel logits of p(x | z), whose sigmoid is the mean: codes (..., N, K) -> (..., D)."""
        flat = z.reshape(-1, self.latents * self.categories)
        return self._run(self.decoder, flat).reshape(*z.shape[:-2], -1)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z): images (B, D), codes (S, B, N, K) or (S, 1, N, K) -> (S, B).

        log p(x | z) = x . l - sum softplus(l), with l = decode(z). A batch axis of size 1 in z
        stands for the same codes for every image: each is decoded once, and scored against the
        whole batch by one matrix product.
        """
        logits = self.decode(z)  # (S, B or 1, D)
        if z.shape[1] == 1:
            score = logits.squeeze(1) @ x.T
        else:
            score = (x * logits).sum(-1)
        return score - self.log_normaliser(logits)

    def log_normaliser(self, pixel_logits: Tensor) -> Tensor:
        """sum log(1 + exp l), which log p(x | z) has less than x . l: (..., D) -> (...)."""
        return F.softplus(pixel_logits, threshold=40).sum(-1)  # 40: exact in float64 too

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z): codes (..., N, K) -> (...)."""
        return (z * self.prior_logits.log_softmax(-1)).sum((-2, -1))

    def kl(self, logits: Tensor) -> Tensor:
        """KL(q(z | x) || p(z)) in closed form: (B, N, K) -> (B,)."""
        return categorical.kl_divergence(logits, self.prior_logits)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Pixel probabilities (count, D) of `count` codes drawn from the prior."""
        return self.decode(categorical.sample(self.prior_logits, count, generator)).sigmoid()

    def joint_log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z): images (B, D), codes (S, B, N, K) or (S, 1, N, K) -> (S, B)."""
        return self.log_likelihood(x, z) + self.log_prior(z)

    def _run(self, network: nn.Module, x: Tensor) -> Tensor:
        if self.precision is None:
            return network(x)
        with torch.autocast(x.device.type, self.precision):
            return network(x).float()
