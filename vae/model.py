"""The VAE: p(x, z) = p(z) p(x | z) and q(z | x). It knows nothing of gradient estimators."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vae import categorical
from vae.networks import Networks
from vae.utils.validation import Count, validated

_LEAST_MEAN = 0.001  # of a pixel, and 1 minus the largest mean: keeps its logit finite


class CategoricalVAE(nn.Module):
    """A VAE whose latent layer is N independent K-way categoricals, with Bernoulli pixels.

    q(z | x) = prod_n Cat(z_n | encode(x)_n) and p(x | z) = prod_d Bernoulli(x_d | decode(z)_d).
    All log-densities are in nats per image: summed over pixels and latents. If a pixel is neither
    0 nor 1, the Bernoulli term is a cross-entropy and not a likelihood.

    Args:
        networks: Describes the encoder and the decoder.
        latents: N.
        categories: K.
        prior: p(z) is uniform, or N categoricals with learned logits.
        posterior: How the encoder's scores become logits: `softmax` takes K scores of each latent
            as they are, and `catnat` takes K - 1 scores, for a K that is a power of 2.
        image_shape: Height and width; D = height * width.
        output_bias: With "data_mean", the logit of each pixel's mean over the training images is
            added to the output of the decoder, so that an untrained model predicts roughly the
            mean image. The public code of DisARM, and of the papers that compare with it, starts
            the trained bias of the last layer at these logits (`--initialize_with_bias`). With
            MLP and Linear the two differ by torch's random initial bias; Conv has one bias for
            all pixels, and here the logits are fixed.
        center_input: Subtract the mean of the training images from the input of the encoder.
            (`--demean_input` in the same code also maps the codes to -1 and 1.)

    `set_data_mean` sets the mean, which is stored with the weights. Until then the logits and the
    mean are zero.

    References:
        Dong, Mnih & Tucker (2020), https://arxiv.org/abs/2006.10680, and its code,
        google-research/disarm/binary.
    """

    prior_logits: Tensor  # (N, K)
    mean_logits: Tensor | None  # (D,), added to the output of the decoder
    input_mean: Tensor | None  # (D,), subtracted from the input of the encoder

    precision: torch.dtype | None = None
    """The dtype of autocast in the two networks, or None for none; the rest stays in float32."""

    @validated
    def __init__(
        self,
        networks: Networks,
        latents: Count,
        categories: Annotated[int, Field(ge=2)],
        prior: Literal["uniform", "learned"] = "uniform",
        # Not strict: a configuration has a list.
        image_shape: Annotated[tuple[Count, Count], Field(strict=False)] = (28, 28),
        output_bias: Literal["default", "data_mean"] = "default",
        center_input: bool = False,
        posterior: Literal["softmax", "catnat"] = "softmax",
    ) -> None:
        super().__init__()
        if posterior == "catnat" and categories.bit_count() != 1:
            raise ValueError(f"posterior=catnat: categories={categories} is not a power of 2")
        self.posterior = posterior
        self.latents, self.categories, self.image_shape = latents, categories, image_shape
        scores = categories - 1 if posterior == "catnat" else categories
        self.encoder = networks.encoder(image_shape, latents * scores)
        self.decoder = networks.decoder(image_shape, latents * categories)
        uniform = torch.zeros(latents, categories)
        if prior == "learned":
            self.prior_logits = nn.Parameter(uniform)
        else:
            self.register_buffer("prior_logits", uniform, persistent=False)
        pixels = math.prod(image_shape)
        has_mean_logits = output_bias == "data_mean"
        self.register_buffer("mean_logits", torch.zeros(pixels) if has_mean_logits else None)
        self.register_buffer("input_mean", torch.zeros(pixels) if center_input else None)

    @property
    def uses_data_mean(self) -> bool:
        """Whether the model depends on the mean of the training images."""
        return self.mean_logits is not None or self.input_mean is not None

    @torch.no_grad()
    def set_data_mean(self, mean: Tensor) -> None:
        """Set the mean of the training images, before the first step of training.

        Args:
            mean: The mean of each pixel, (D,) in [0, 1]. For the logits, means are clamped to
                [0.001, 0.999], as in the code of DisARM.
        """
        if self.mean_logits is not None:
            self.mean_logits.copy_(mean.clamp(_LEAST_MEAN, 1 - _LEAST_MEAN).logit())
        if self.input_mean is not None:
            self.input_mean.copy_(mean)

    def encode(self, x: Tensor) -> Tensor:
        """Return the logits of q(z | x): images (B, D) in [0, 1] -> (B, N, K)."""
        if self.input_mean is not None:
            x = x - self.input_mean
        scores = self._run(self.encoder, x).unflatten(-1, (self.latents, -1))
        return categorical.catnat(scores) if self.posterior == "catnat" else scores

    def decode(self, z: Tensor) -> Tensor:
        """Return the pixel logits of p(x | z): codes (..., N, K) -> (..., D).

        The mean of p(x | z) is their sigmoid.
        """
        flat = z.reshape(-1, self.latents * self.categories)
        pixel_logits = self._run(self.decoder, flat)
        if self.mean_logits is not None:
            pixel_logits = pixel_logits + self.mean_logits
        return pixel_logits.reshape(*z.shape[:-2], pixel_logits.shape[-1])

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x | z) = x . l - sum softplus(l) with l = decode(z), in nats per image.

        For log p(x), see `vae.evaluation.log_likelihood`.

        Args:
            x: Images (B, D).
            z: Codes (S, B, N, K), or (S, 1, N, K) if every image has the same codes. The second
                form decodes each code once and scores all images by one matrix product.

        Returns:
            Log-likelihoods (S, B).
        """
        pixel_logits = self.decode(z)  # (S, B or 1, D)
        same_codes = z.shape[1] == 1
        score = pixel_logits.squeeze(1) @ x.T if same_codes else (x * pixel_logits).sum(-1)
        return score - self.log_normaliser(pixel_logits)

    def log_normaliser(self, pixel_logits: Tensor) -> Tensor:
        """Return sum log(1 + exp l), the normaliser of log p(x | z): (..., D) -> (...)."""
        return F.softplus(pixel_logits, threshold=40).sum(-1)  # 40: exact also in float64

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z): codes (..., N, K) -> (...)."""
        return (z * self.prior_logits.log_softmax(-1)).sum((-2, -1))

    def joint_log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x, z): images (B, D), codes (S, B, N, K) or (S, 1, N, K) -> (S, B)."""
        return self.log_likelihood(x, z) + self.log_prior(z)

    def kl(self, logits: Tensor) -> Tensor:
        """Return KL(q(z | x) || p(z)) in closed form, in nats per image: (B, N, K) -> (B,)."""
        return categorical.kl_divergence(logits, self.prior_logits)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw codes from the prior and return their pixel probabilities, (count, D)."""
        return self.decode(categorical.sample(self.prior_logits, count, generator)).sigmoid()

    def _run(self, network: nn.Module, x: Tensor) -> Tensor:
        if self.precision is None:
            return network(x)
        with torch.autocast(x.device.type, self.precision):
            return network(x).float()
