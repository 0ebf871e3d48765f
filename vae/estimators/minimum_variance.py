"""The straight-through estimators of least variance."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..categorical import gradient_of, sample
from ..schedules import PositiveSchedule, Step, Value
from ..validation import Count, validated
from .base import Pathwise


class MinimumVariance(Pathwise):
    """MVE(tau): for each sampled category a Jacobian, together the best compromise of two demands.

    Exact in expectation for f linear in each z_n at every tau. tau to 0 is straight-through, of
    least variance; tau to infinity (`temperature: null`) is exact for f quadratic in each z_n, and
    of least variance among those. The tau here weighs the two and softens nothing; it usually
    rises. The value is an unbiased estimate of L. One evaluation of f per sample, and one
    system of K equations in float64 for each latent of each image.

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
            p, z = logits.double().softmax(-1), z.double()
            if temperature is None:
                p = p.clamp_min(torch.finfo(p.dtype).tiny)
                pull, held = _pull_in_the_limit, (p, z, _limit_system(p))
            else:
                tau_p, tau_z = temperature * p, temperature * z
                pull, held = _pull, (p, z, tau_p, tau_z, _system(p, tau_p))
        return _Pulled.apply(logits.expand(z.shape), pull, *held)


class _Pulled(torch.autograd.Function):
    """What has the gradient pull(g, *held) in the logits; its value means nothing.

    In the backward pass a Jacobian is only ever multiplied by one vector, so none is made.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, pull: Callable[..., Tensor], *held: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.pull, *held = inputs
        ctx.save_for_backward(*held)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        held = ctx.saved_tensors
        pulled = ctx.pull(g.double(), *held).to(g.dtype)
        return pulled, None, *[None for _ in held]


def _system(p: Tensor, tau_p: Tensor) -> Tensor:
    """A of A V = R J, symmetric: probabilities (B, N, K) and tau times them -> (B, N, K, K).

    float64: its smallest singular value falls like 3 / tau.
    """
    share = p.unsqueeze(-2) / (1 + tau_p.unsqueeze(-1) + tau_p.unsqueeze(-2))
    diagonal = (1 + tau_p) * share.sum(-1)
    a = share.mul_(-tau_p.unsqueeze(-1))
    a.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    return a


def _pull(g: Tensor, p: Tensor, z: Tensor, tau_p: Tensor, tau_z: Tensor, a: Tensor) -> Tensor:
    """S^T g, like g (S, B, N, K), without S.

    J = diag(p) - p p^T, R = diag((1 + tau p) / (1 + 2 tau p)), A V = R J, x the sampled category:
    row i of S is ((1 + tau p_i) V_i - tau p_i V_x + tau [i = x] J_x) / (1 + tau (p_i + p_x)).
    """
    g = g / (1 + tau_p + (z * tau_p).sum(-1, keepdim=True))
    to_v = (1 + tau_p) * g - z * (tau_p * g).sum(-1, keepdim=True)
    to_j = (1 + tau_p) / (1 + 2 * tau_p) * _solve(a, to_v) + tau_z * g
    return p * (to_j - (p * to_j).sum(-1, keepdim=True))


def _limit_system(p: Tensor) -> Tensor:
    """M of M^T C = (I - 1 p^T) / 2, for tau at infinity: probabilities (B, N, K) -> (B, N, K, K).

    C = G^+ J / 2, with G the Laplacian of the weights p_i p_j / (p_i + p_j). Only differences of
    C's rows matter, and G C = J / 2 is solved with row i divided by p_i, which leaves nothing
    small; 1 p^T fills the null space.
    """
    row, column = p.unsqueeze(-1), p.unsqueeze(-2)
    share = column / (row + column)  # (B, N, K, K): p_j / (p_i + p_j)
    share.diagonal(dim1=-2, dim2=-1).zero_()
    m = column - share
    m.diagonal(dim1=-2, dim2=-1).add_(share.sum(-1))
    return m.mT


def _pull_in_the_limit(g: Tensor, p: Tensor, z: Tensor, m: Tensor) -> Tensor:
    """S^T g, where row i of S is p_i / (p_x + p_i) (C_i - C_x), and row x is (e_x - p) / 2."""
    others = (1 - z) * g * p / (p + (z * p).sum(-1, keepdim=True))
    to_c = _solve(m, others - z * others.sum(-1, keepdim=True))
    sampled = z * g
    return (to_c + sampled - p * (to_c + sampled).sum(-1, keepdim=True)) / 2


def _solve(a: Tensor, b: Tensor) -> Tensor:
    """a (B, N, K, K), b (S, B, N, K) -> like b; no look at the outcome, for which CUDA waits."""
    return torch.linalg.solve_ex(a, b.movedim(0, -1)).result.movedim(-1, 0)
