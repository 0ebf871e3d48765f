"""The quality of the gradient that an estimator gives the encoder of a model.

An estimator estimates the gradient of the distortion, E_q[-log p(x | z)], with respect to the
parameters of the encoder. The distortion is averaged over a batch of images. The gradient of the
KL is exact in training, so it is left out. If the codes can be enumerated, estimates are compared
with the exact gradient. Otherwise they are compared with independent unbiased estimates, whose
noise is removed from the result in the same way as the noise of the draws.

The noise has a seed, and a measurement does not change the random numbers of training.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from vae.estimators import Estimator, Exact, Reinforce
from vae.evaluation.bounds import EXACT_LIMIT, can_enumerate
from vae.model import CategoricalVAE
from vae.schedules import Step

_SEED = 50_000
_CHUNKS = 20  # independent parts of the draws; their spread gives the standard errors
_NUMBERS = 2**25  # entries of gradients in memory at once: 128 MB
_REFERENCE_SAMPLES = 200  # codes of each image in one unbiased estimate of the truth


class GradientQuality(NamedTuple):
    """Quality of a gradient, relative to the norm of the true gradient g of the batch.

    h is one draw, as one training step makes it: the gradient of the distortion, without the KL
    and before variance normalisation. A number is NaN if the noise of the estimates of g hides
    its norm; more images help.
    """

    bias: float  # |E h - g| / |g|, without the noise of the draws; 0 if the noise hides it
    bias_error: float  # one standard error of the bias
    deviation: float  # sqrt(E |h - E h|^2) / |g|
    cosine: float  # mean over draws of h . g / |h| |g|
    snr: float  # |E h| / sqrt(E |h - E h|^2)

    @property
    def variance(self) -> float:
        """Return E |h - E h|^2 / |g|^2."""
        return self.deviation**2


def true_gradients(model: CategoricalVAE, x: Tensor, seed: int = _SEED) -> Tensor:
    """Return the true gradient, or unbiased estimates of it, to measure estimators against.

    Args:
        model: The model, whose encoder has P parameters.
        x: Images (B, D) in [0, 1].
        seed: Seed of the noise.

    Returns:
        Rows (C, P). If the codes can be enumerated, one exact row (C = 1). Otherwise independent
        unbiased rows, each from the score function with leave-one-out baselines.
    """
    if can_enumerate(model):
        return _draws(model, Exact(limit=EXACT_LIMIT), x, 0, 1)
    reference = Reinforce(samples=_REFERENCE_SAMPLES)
    with seeded_rng(x.device, seed + 1):
        rows = [_draws(model, reference, x, 0, 1) for _ in range(_CHUNKS)]
    return torch.cat(rows)


def gradient_quality(
    model: CategoricalVAE,
    estimator: Estimator,
    x: Tensor,
    truth: Tensor,
    step: Step = 0,
    draws: int = 1000,
    seed: int = _SEED,
) -> GradientQuality:
    """Measure the gradient of an estimator at a batch of images.

    To draw many gradients at once, the batch is repeated. All draws share one backward pass of
    estimator and decoder, and one vectorised backward pass of the encoder.

    Args:
        model: The model.
        estimator: The estimator.
        x: Images (B, D) in [0, 1].
        truth: The result of `true_gradients` at the same images.
        step: The global step, on which the estimator's temperature depends.
        draws: The number of gradients to draw, which is rounded up: see `draws_made`.
        seed: Seed of the noise.
    """
    chunks, draws_per_chunk = _chunks(draws)
    limit = max(1, _NUMBERS // truth.shape[1])
    pass_sizes = [len(part) for part in torch.arange(draws_per_chunk).split(limit)]
    means, squares, cosines = [], [], []
    g = truth.double().mean(0)
    norm = _squared_norm(truth).sqrt()
    with seeded_rng(x.device, seed), eval_mode(estimator):
        for _ in range(chunks):
            total = torch.zeros_like(g)
            for size in pass_sizes:
                h = _draws(model, estimator, x, step, size)  # (size, P)
                length = torch.linalg.vector_norm(h, dim=1, dtype=torch.float64)
                total += h.sum(0, dtype=torch.float64)
                squares.append(length.square())
                tiny = torch.finfo(length.dtype).tiny  # a draw of length 0 has the cosine 0
                cosines.append((h @ g.to(h.dtype)).double() / (length * norm).clamp_min(tiny))
            means.append(total / draws_per_chunk)
    mean = torch.stack(means)  # (C, P)
    signal = _squared_norm(mean)
    deviation = (torch.cat(squares).mean() - signal).clamp_min(0).sqrt()
    bias, bias_error = _distance(mean - truth[:chunks])  # each chunk has one row of the truth
    return GradientQuality(
        bias=float(bias / norm),
        bias_error=float(bias_error / norm),
        deviation=float(deviation / norm),
        cosine=float(torch.cat(cosines).mean()),
        snr=float(signal.clamp_min(0).sqrt() / deviation),
    )


def draws_made(draws: int) -> int:
    """Return the number of draws after rounding up to a multiple of the number of chunks."""
    chunks, draws_per_chunk = _chunks(draws)
    return chunks * draws_per_chunk


def _chunks(draws: int) -> tuple[int, int]:
    """Return the number of chunks, and the draws in each of them."""
    chunks = max(2, min(draws, _CHUNKS))
    return chunks, math.ceil(draws / chunks)


def fit(
    model: CategoricalVAE,
    estimator: Estimator,
    batches: Iterable[Tensor],
    lr: float = 1e-3,
    seed: int = _SEED + 2,
) -> None:
    """Train an estimator's parameters with Adam, and let it update its buffers.

    A control variate or a baseline has to be fitted to the objective before the estimator is
    measured. The model does not change. An estimator without parameters and buffers is not run.

    Args:
        model: The model.
        estimator: The estimator to train.
        batches: Images (B, D) in [0, 1].
        lr: Learning rate.
        seed: Seed of the noise.
    """
    if not estimator.state_dict():
        return
    parameters = list(estimator.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr) if parameters else None
    with seeded_rng(model.prior_logits.device, seed):
        for step, x in enumerate(batches):
            logits = model.encode(x).detach().requires_grad_()
            loss = estimator(logits, lambda z, x=x: -model.log_likelihood(x, z), step).mean()
            if optimizer:
                gradients = torch.autograd.grad(loss, parameters)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()


def _draws(
    model: CategoricalVAE, estimator: Estimator, x: Tensor, step: Step, draws: int
) -> Tensor:
    """Return independent estimates (draws, P) of the gradient of the mean over the batch."""
    logits = model.encode(x)  # (B, N, K)
    copies = logits.detach().repeat(draws, 1, 1).requires_grad_()  # (draws * B, N, K)
    images = x.repeat(draws, 1)
    loss = estimator(copies, lambda z: -model.log_likelihood(images, z), step)
    (gradients,) = torch.autograd.grad(loss.sum() / len(x), copies)
    rows = torch.autograd.grad(
        logits,
        list(model.encoder.parameters()),
        gradients.reshape(draws, *logits.shape),
        is_grads_batched=True,
    )
    return torch.cat([row.flatten(1) for row in rows], 1)


def _squared_norm(rows: Tensor) -> Tensor:
    """Return an unbiased estimate of |E row|^2, the mean of row_i . row_j over i != j.

    Args:
        rows: Independent rows (C, P). A single row is taken to be free of noise.
    """
    rows = rows.double()
    if len(rows) == 1:
        return rows.square().sum()
    return _mean_of_products(rows.sum(0).square().sum(), rows.square().sum(), len(rows))


def _mean_of_products(sum_squared: Tensor, squares: Tensor, count: int) -> Tensor:
    """Return the mean of row_i . row_j over i != j, from |sum row|^2 and sum |row|^2."""
    return (sum_squared - squares) / (count * (count - 1))


def _distance(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return |E row| and its standard error, which is a jackknife over the rows.

    If the estimate of |E row|^2 is not positive, the distance is 0 and its error is the root of
    the error of the square.

    Args:
        rows: Independent rows (C, P). With fewer than three the error is NaN.
    """
    rows, count = rows.double(), len(rows)
    square = _squared_norm(rows)
    if count < 3:
        return square.clamp_min(0).sqrt(), torch.full_like(square, math.nan)
    total, squared_lengths = rows.sum(0), rows.square().sum(1)  # (P,), (C,)
    # |total - row|^2 for each row, (C,).
    leave_one_out_sums = total.square().sum() - 2 * (rows @ total) + squared_lengths
    leave_one_out = _mean_of_products(
        leave_one_out_sums, squared_lengths.sum() - squared_lengths, count - 1
    )
    error = ((count - 1) * (leave_one_out - leave_one_out.mean()).square().mean()).sqrt()
    distance = square.clamp_min(0).sqrt()
    return distance, (distance.square() + error).sqrt() - distance


@contextmanager
def seeded_rng(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators inside the context, and restore their states on exit."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def eval_mode(estimator: Estimator) -> Iterator[None]:
    """Put the estimator into evaluation mode, in which baselines are not updated."""
    training = estimator.training
    estimator.eval()
    try:
        yield
    finally:
        estimator.train(training)
