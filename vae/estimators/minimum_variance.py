"""The straight-through estimators of least variance."""

import torch
from torch import Tensor

from ..categorical import gradient_of, sample
from ..schedules import PositiveSchedule, Step, Value
from ..validation import Count, validated
from .base import Pathwise, linear_surrogate


class MinimumVariance(Pathwise):
    """MVE(tau): for each sampled category a Jacobian, together the best compromise of two demands.

    Exact in expectation for f linear in each z_n at every tau. tau to 0 is straight-through, of
    least variance; tau to infinity (`temperature: null`) is exact for f quadratic in each z_n, and
    of least variance among those. The tau here weighs the two and softens nothing; it usually
    rises. The value is an unbiased estimate of L. One evaluation of f per sample, and a K x K
    solve in float64 for each latent of each image.

    Hooper & Shekhovtsov (2026), generalized and optimal straight-through estimators; the limit is
    also the categorical second-order member of Fini (2026), proposition C.3.
    """

    @validated
    def __init__(self, temperature: PositiveSchedule | None, samples: Count = 1) -> None:
        super().__init__()
        self.temperature = temperature
        self.samples = samples

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        z = sample(logits, self.samples)  # (S, B, N, K)
        temperature = None if self.temperature is None else self.temperature(step)
        return z + gradient_of(self.surrogate(z, logits, temperature))

    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value | None) -> Tensor:
        """(S, B, N, K) samples, (B, N, K) logits -> (S, B, N, K); no temperature is infinity."""
        with torch.no_grad():
            p = logits.double().softmax(-1)
            if temperature is None:
                jacobian = limit_jacobian(p, z.double())
            else:
                jacobian = minimum_variance_jacobian(p, z.double(), temperature)
        return linear_surrogate(jacobian.to(logits.dtype), logits)


def minimum_variance_jacobian(p: Tensor, z: Tensor, tau: Value) -> Tensor:
    """S with gradient S^T g, for probabilities (B, N, K) and codes (S, B, N, K): (S, B, N, K, K).

    float64: the smallest singular value of the system falls like 3 / tau.
    """
    j = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    row, column = p.unsqueeze(-1), p.unsqueeze(-2)
    pair = 1 + tau * (row + column)  # (B, N, K, K)
    diagonal = (1 + tau * p) * (column / pair).sum(-1)
    a = torch.diag_embed(diagonal) - tau * row * column / pair
    b = (1 + tau * row) / (1 + 2 * tau * row) * j
    v = torch.linalg.solve_ex(a, b).result  # without a look at the outcome, for which CUDA waits
    v_x = (z.unsqueeze(-2) @ v).squeeze(-2).unsqueeze(-2)  # (S, B, N, 1, K), the sampled row
    j_x = (z.unsqueeze(-2) @ j).squeeze(-2).unsqueeze(-2)
    p_x = (z * p).sum(-1, keepdim=True).unsqueeze(-1)
    sampled = z.unsqueeze(-1)  # 1 in row x
    return ((1 + tau * row) * v - tau * row * v_x + tau * sampled * j_x) / (1 + tau * (row + p_x))


def limit_jacobian(p: Tensor, z: Tensor) -> Tensor:
    """The limit of `minimum_variance_jacobian` as tau tends to infinity.

    C = G^+ J / 2, with G the Laplacian of the weights p_i p_j / (p_i + p_j). Only differences of
    its rows matter, and G C = J / 2 is solved with row i divided by p_i, which leaves nothing
    small; 1 p^T fills the null space.
    """
    p = p.clamp_min(torch.finfo(p.dtype).tiny)
    row, column = p.unsqueeze(-1), p.unsqueeze(-2)
    share = column / (row + column)  # (B, N, K, K): p_j / (p_i + p_j)
    eye = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
    laplacian = torch.diag_embed((share * (1 - eye)).sum(-1)) - share * (1 - eye)
    c = torch.linalg.solve_ex(laplacian + column, (eye - column) / 2).result
    c_x = (z.unsqueeze(-2) @ c).squeeze(-2).unsqueeze(-2)  # (S, B, N, 1, K), the sampled row
    sampled = z.unsqueeze(-1)  # 1 in row x
    p_x = (z * p).sum(-1, keepdim=True).unsqueeze(-1)
    others = row / (p_x + row) * (c - c_x)
    return torch.where(sampled > 0, (z.unsqueeze(-2) - column) / 2, others)
