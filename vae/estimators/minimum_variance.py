"""MVE, the straight-through estimators of least variance."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae.categorical import gradient_of, sample
from vae.estimators.base import Pathwise
from vae.schedules import PositiveSchedule, Step, Value
from vae.utils.validation import Count, validated


class MinimumVariance(Pathwise):
    """Use one Jacobian S_x for each sampled category x, chosen to have the least variance.

    Gradient in the logits: S_x^T g, with S_x as in `_pull` and, for tau = infinity, as in
    `_pull_in_the_limit`. The Jacobians of MVE(tau) are the best trade-off between the variance of
    the gradient and its error for quadratic f. Here tau is the weight of the second and smooths
    nothing: as tau falls to 0 the method tends to straight-through, which has the least variance;
    as tau grows the error vanishes. The temperature usually rises during training.

    Bias: none at every tau if f is linear in each z_n; none at tau = infinity if f is quadratic
        in each z_n, with the least variance of all such estimators.
    Value: an unbiased estimate of L.
    Cost: one evaluation of f per sample, and one K x K linear system in float64 for each latent
        of each image.
    Reference: Hooper & Shekhovtsov (2026), generalized and optimal straight-through estimators.
        The limit is also the categorical second-order member of the family Fini of He & Wu
        (2026), proposition C.3.

    Args:
        temperature: tau, a number or a schedule, greater than 0; None for infinity.
        samples: S, the number of codes drawn for each image.
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
        """Return a tensor with the gradient S_x^T g in the logits; its value is not used.

        Args:
            z: One-hot samples (S, B, N, K).
            logits: (B, N, K).
            temperature: tau; None for infinity.

        Returns:
            A tensor (S, B, N, K).
        """
        pull: Callable[..., Tensor]
        saved: tuple[Tensor, ...]
        with torch.no_grad():
            p, z = logits.double().softmax(-1), z.double()
            if temperature is None:
                p = p.clamp_min(torch.finfo(p.dtype).tiny)
                pull, saved = _pull_in_the_limit, (p, z, _limit_system(p))
            else:
                tau_p, tau_z = temperature * p, temperature * z
                pull, saved = _pull, (p, z, tau_p, tau_z, _system(p, tau_p))
        return _WithGradient.apply(logits.expand(z.shape), pull, *saved)


class _WithGradient(torch.autograd.Function):
    """Return a tensor whose gradient in the logits is pull(g, *saved); its value is not used.

    The backward pass needs only the product of a Jacobian and one vector g, so the Jacobian itself
    (S, B, N, K, K) is never made.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, pull: Callable[..., Tensor], *saved: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.pull, *saved = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        pulled = ctx.pull(g.double(), *saved).to(g.dtype)
        return pulled, None, *[None for _ in saved]


def _system(p: Tensor, tau_p: Tensor) -> Tensor:
    """Return the symmetric matrix A of A V = R J, in the notation of `_pull`.

    In float64, because the smallest singular value of A falls like 1 / tau.

    Args:
        p: Probabilities (B, N, K).
        tau_p: tau times p.

    Returns:
        A, (B, N, K, K).
    """
    share = p.unsqueeze(-2) / (1 + tau_p.unsqueeze(-1) + tau_p.unsqueeze(-2))
    diagonal = (1 + tau_p) * share.sum(-1)
    a = share.mul_(-tau_p.unsqueeze(-1))
    a.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    return a


def _pull(g: Tensor, p: Tensor, z: Tensor, tau_p: Tensor, tau_z: Tensor, a: Tensor) -> Tensor:
    """Return S_x^T g, (S, B, N, K), without making S_x.

    Let J = diag(p) - p p^T, R = diag((1 + tau p) / (1 + 2 tau p)), A V = R J, and x the sampled
    category. Row i of S_x is

        ((1 + tau p_i) V_i - tau p_i V_x + tau [i = x] J_x) / (1 + tau (p_i + p_x)).
    """
    g = g / (1 + tau_p + (z * tau_p).sum(-1, keepdim=True))
    to_v = (1 + tau_p) * g - z * (tau_p * g).sum(-1, keepdim=True)
    to_j = (1 + tau_p) / (1 + 2 * tau_p) * _solve(a, to_v) + tau_z * g
    return p * (to_j - (p * to_j).sum(-1, keepdim=True))


def _limit_system(p: Tensor) -> Tensor:
    """Return the matrix M of M^T C = (I - 1 p^T) / 2, which replaces A at tau = infinity.

    C = G^+ J / 2, with G the graph Laplacian of the weights p_i p_j / (p_i + p_j). Only
    differences of C's rows matter. The equation G C = J / 2 is solved with row i divided by p_i,
    so that no entry is small, and 1 p^T is added to fill the null space.

    Args:
        p: Probabilities (B, N, K), greater than 0.

    Returns:
        M, (B, N, K, K).
    """
    row, column = p.unsqueeze(-1), p.unsqueeze(-2)
    share = column / (row + column)  # (B, N, K, K): p_j / (p_i + p_j)
    share.diagonal(dim1=-2, dim2=-1).zero_()
    m = column - share
    m.diagonal(dim1=-2, dim2=-1).add_(share.sum(-1))
    return m.mT


def _pull_in_the_limit(g: Tensor, p: Tensor, z: Tensor, m: Tensor) -> Tensor:
    """Return S_x^T g, (S, B, N, K), at tau = infinity.

    Row i of S_x is p_i / (p_x + p_i) (C_i - C_x), and row x is (e_x - p) / 2.
    """
    others = (1 - z) * g * p / (p + (z * p).sum(-1, keepdim=True))
    to_c = _solve(m, others - z * others.sum(-1, keepdim=True))
    sampled = z * g
    return (to_c + sampled - p * (to_c + sampled).sum(-1, keepdim=True)) / 2


def _solve(a: Tensor, b: Tensor) -> Tensor:
    """Solve a x = b for each sample: a (B, N, K, K), b (S, B, N, K) -> (S, B, N, K).

    `solve_ex` does not check whether the solution succeeded; that would synchronise a CUDA device.
    """
    return torch.linalg.solve_ex(a, b.movedim(0, -1)).result.movedim(-1, 0)
