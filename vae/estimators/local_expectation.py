"""Local expectation gradients: an exact sum over one latent at a time."""

import torch
from torch import Tensor

from vae.categorical import gradient_of, one_hot, sample
from vae.estimators.base import CodeFunction, Estimator
from vae.schedules import Step

_CHUNK = 10  # codes per image in memory at once


class LocalExpectation(Estimator):
    """Draw z, and for each latent sum exactly over its categories at fixed other latents.

    Gradient in the logits of latent n: sum_k f(z_1, ..., k, ..., z_N) grad p_nk, in which
    category k replaces z_n.

    Bias: none for every f, differentiable or not. No variance if f is a sum of functions of one
        latent each, or if N = 1.
    Value: f(z), an unbiased estimate of L. The parameters of f get the gradient of f(z) alone.
    Cost: N (K - 1) + 1 evaluations of f. All but one are made without a graph, and a few at a
        time, so the memory of f does not grow with N or K.
    Reference: Titsias & Lazaro-Gredilla (2015), https://arxiv.org/abs/1503.01494.
    """

    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        z = sample(logits, 1)  # (1, B, N, K)
        loss = f(z).squeeze(0)  # (B,)
        with torch.no_grad():
            differences = [self._differences(z, n, loss, f) for n in range(logits.shape[-2])]
        advantage = torch.stack(differences, -2)  # (B, N, K)
        return loss + gradient_of((advantage * logits.softmax(-1)).sum((-2, -1)))

    def _differences(self, z: Tensor, n: int, loss: Tensor, f: CodeFunction) -> Tensor:
        """Return f with each category in place of z_n, less f(z): (B, K)."""
        categories = z.shape[-1]
        differences = torch.zeros_like(z[0, :, n])  # (B, K), 0 at the category of z_n
        for offsets in torch.arange(1, categories, device=z.device).split(_CHUNK):
            others = (z[..., n, :].argmax(-1) + offsets.unsqueeze(-1)) % categories  # (C, B)
            codes = z.repeat(len(offsets), 1, 1, 1)  # (C, B, N, K)
            codes[..., n, :] = one_hot(others, categories, z.dtype)
            change = (f(codes) - loss).to(z.dtype)  # (C, B)
            differences = differences.scatter(-1, others.T, change.T)
        return differences
