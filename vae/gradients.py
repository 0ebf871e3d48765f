"""Numbers about an estimator: how good a gradient it gives the encoder of a given model.

Of the gradient of the distortion E_q[-log p(x | z)], mean over a batch of images, in the encoder's
parameters: what the estimator estimates, without the KL, whose gradient is exact in training. It
is compared with the exact gradient where the codes can be enumerated, and elsewhere with
independent unbiased estimates, whose noise is taken out of the result like that of the draws.
Noise comes from a seed of its own; measuring changes nothing else that is random.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .estimators import Estimator, Exact, Reinforce
from .evaluation import EXACT_LIMIT, can_enumerate
from .model import CategoricalVAE
from .schedules import Step

_SEED = 50_000
_CHUNKS = 20  # independent parts of the draws, from whose spread the errors come
_NUMBERS = 2**25  # entries of the gradients that are held at once: 128 MB
_REFERENCE_SAMPLES = 200  # codes of each image behind a reference, where nothing is enumerated


class GradientQuality(NamedTuple):
    """All relative to the norm of the true gradient g of the batch; h is one draw of a step's."""

    bias: float  # |E h - g| / |g|, without the noise of the draws; 0 where noise hides it
    bias_error: float  # one standard error of it
    deviation: float  # sqrt(E |h - E h|^2) / |g|
    cosine: float  # mean over draws of h . g / |h| |g|
    snr: float  # |E h| / sqrt(E |h - E h|^2)

    @property
    def variance(self) -> float:
        """E |h - E h|^2 / |g|^2."""
        return self.deviation**2


def true_gradients(model: CategoricalVAE, x: Tensor, seed: int = _SEED) -> Tensor:
    """The gradient that estimators are measured against: images (B, D) in [0, 1] -> (C, P).

    P parameters of the encoder. One row (C = 1), exact, where the codes can be enumerated;
    otherwise independent unbiased rows, each the score function with leave-one-out baselines.
    """
    if can_enumerate(model):
        return _draws(model, Exact(limit=EXACT_LIMIT), x, 0, 1)
    reference = Reinforce(samples=_REFERENCE_SAMPLES)
    with _own_noise(x.device, seed + 1):
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
    """Measures the estimator at images x (B, D) in [0, 1]; `truth` is their `true_gradients`.

    The draws of the noise are copies of the batch in one backward pass of estimator and decoder,
    and one vectorised pass of the encoder.
    """
    chunks, each = _chunks(draws)
    passes = [len(part) for part in torch.arange(each).split(max(1, _NUMBERS // truth.shape[1]))]
    means, squares, cosines = [], [], []
    g = truth.double().mean(0)
    norm = _squared_norm(truth).sqrt()
    with _own_noise(x.device, seed), _measured(estimator):
        for _ in range(chunks):
            total = torch.zeros_like(g)
            for size in passes:
                h = _draws(model, estimator, x, step, size)  # (size, P)
                length = torch.linalg.vector_norm(h, dim=1, dtype=torch.float64)
                total += h.sum(0, dtype=torch.float64)
                squares.append(length.square())
                none = torch.finfo(length.dtype).tiny  # a draw of nothing points nowhere: cosine 0
                cosines.append((h @ g.to(h.dtype)).double() / (length * norm).clamp_min(none))
            means.append(total / each)
    mean = torch.stack(means)  # (C, P)
    signal = _squared_norm(mean)
    deviation = (torch.cat(squares).mean() - signal).clamp_min(0).sqrt()
    bias, bias_error = _distance(mean - truth[:chunks])  # a row of noise of its own for each
    return GradientQuality(
        bias=float(bias / norm),
        bias_error=float(bias_error / norm),
        deviation=float(deviation / norm),
        cosine=float(torch.cat(cosines).mean()),
        snr=float(signal.clamp_min(0).sqrt() / deviation),
    )


def draws_made(draws: int) -> int:
    """How many are made where so many are asked for: the same number in every chunk."""
    chunks, each = _chunks(draws)
    return chunks * each


def _chunks(draws: int) -> tuple[int, int]:
    """How many, and draws in each."""
    chunks = max(2, min(draws, _CHUNKS))
    return chunks, math.ceil(draws / chunks)


def fit(
    model: CategoricalVAE,
    estimator: Estimator,
    batches: Iterable[Tensor],
    lr: float = 1e-3,
    seed: int = _SEED + 2,
) -> None:
    """Trains what the estimator owns, with Adam, at a model that stays as it is.

    A control variate or a baseline means nothing before it has seen the objective. An estimator
    that owns neither parameters nor buffers has nothing to learn. Batches (B, D) in [0, 1].
    """
    if not estimator.state_dict():
        return
    parameters = list(estimator.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr) if parameters else None
    with _own_noise(model.prior_logits.device, seed):
        for step, x in enumerate(batches):
            logits = model.encode(x).detach().requires_grad_()
            loss = estimator(logits, lambda z, x=x: -model.log_likelihood(x, z), step).mean()
            if optimizer:
                slopes = torch.autograd.grad(loss, parameters)
                for parameter, slope in zip(parameters, slopes, strict=True):
                    parameter.grad = slope
                optimizer.step()


def _draws(
    model: CategoricalVAE, estimator: Estimator, x: Tensor, step: Step, draws: int
) -> Tensor:
    """Independent estimates of the gradient of the mean over the batch: (draws, P)."""
    logits = model.encode(x)  # (B, N, K)
    copies = logits.detach().repeat(draws, 1, 1).requires_grad_()  # (draws * B, N, K)
    images = x.repeat(draws, 1)
    loss = estimator(copies, lambda z: -model.log_likelihood(images, z), step)
    (slopes,) = torch.autograd.grad(loss.sum() / len(x), copies)
    rows = torch.autograd.grad(
        logits,
        list(model.encoder.parameters()),
        slopes.reshape(draws, *logits.shape),
        is_grads_batched=True,
    )
    return torch.cat([row.flatten(1) for row in rows], 1)


def _squared_norm(rows: Tensor) -> Tensor:
    """|E row|^2 from independent rows (C, P), unbiased: mean of row_i . row_j over i != j.

    A single row is taken to be without noise.
    """
    rows = rows.double()
    if len(rows) == 1:
        return rows.square().sum()
    return _pairs(rows.sum(0).square().sum(), rows.square().sum(), len(rows))


def _pairs(sum_squared: Tensor, squares: Tensor, count: int) -> Tensor:
    return (sum_squared - squares) / (count * (count - 1))


def _distance(rows: Tensor) -> tuple[Tensor, Tensor]:
    """|E row| and its standard error, from independent rows (C, P): the jackknife over rows.

    Where the square is not positive the distance is 0, and its error the root of the square's.
    """
    rows, count = rows.double(), len(rows)
    square = _squared_norm(rows)
    if count < 3:
        return square.clamp_min(0).sqrt(), torch.full_like(square, math.nan)
    total, own = rows.sum(0), rows.square().sum(1)  # (P,), (C,)
    sums_without = total.square().sum() - 2 * (rows @ total) + own  # |total - row|^2
    without = _pairs(sums_without, own.sum() - own, count - 1)
    error = ((count - 1) * (without - without.mean()).square().mean()).sqrt()
    distance = square.clamp_min(0).sqrt()
    return distance, (distance.square() + error).sqrt() - distance


@contextmanager
def _own_noise(device: torch.device, seed: int) -> Iterator[None]:
    mps = torch.mps.get_rng_state() if device.type == "mps" else None  # fork_rng knows no MPS
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def _measured(estimator: Estimator) -> Iterator[None]:
    """In evaluation mode, where baselines do not move."""
    training = estimator.training
    estimator.eval()
    try:
        yield
    finally:
        estimator.train(training)
