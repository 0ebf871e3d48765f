"""Bounds on log p(x) and code usage: numbers about a model, whatever estimator trained it.

Every bound is a bound of the discrete model at one-hot codes, in nats per image, with beta = 1.
Images are uint8 (n, D) on the model's device. The noise comes from a generator with a fixed seed.
The same model therefore always gives the same numbers, and an evaluation does not change the
random numbers of training.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vae import categorical
from vae.data.source import DataSet, to_float
from vae.model import CategoricalVAE

EXACT_LIMIT = 2**14
"""The largest number of codes for which log p(x) is summed exactly."""

CODE_TERMS = ("perplexity", "active", "entropy")
"""The terms of an `Evaluation` that describe the codes and are not bounds."""

_SEED = 30_000
_ENCODE_BATCH = 1_000  # images encoded at once
_DECODE_BATCH = 10_000  # codes decoded at once: 30 MB of pixel logits
_ACTIVE_VARIANCE = 0.01


def data_title(data: DataSet, importance_samples: int) -> str:
    """Return what the numbers of a table are measured on, and whether they bound a likelihood."""
    grey = "" if data.binary else " (grey pixels: no likelihood)"
    measured_on = f"{data.name}, test, {len(data.test):,} images, in nats per image{grey}"
    return f"{measured_on}, IW bound at m = {importance_samples:,}"


class Evaluation(NamedTuple):
    """Result of one pass over the images, with one code sampled for each image."""

    elbo: float  # E_q[log p(x | z)] - KL under q = Cat(logits), one sample: a bound in expectation
    rate: float  # KL(q(z | x) || p(z)), in closed form
    distortion: float  # E_q[-log p(x | z)]
    elbo_map: float  # log p(x, z*), z* = argmax q(z | x): the ELBO of the point mass at the mode
    perplexity: float  # exp(entropy) of the aggregate q(z_n) = mean_x q(z_n | x), mean over n
    active: int  # latents whose q(z_n | x) depends on x: see `active_latents`
    entropy: float  # of q(z | x), summed over the latents
    usage: Tensor  # (N, K), the aggregate posterior

    def bound_terms(self) -> dict[str, float]:
        """Return the ELBO, its terms rate and distortion, and the ELBO of the mode, by name."""
        return {name: getattr(self, name) for name in ("elbo", "rate", "distortion", "elbo_map")}

    def code_terms(self) -> dict[str, float]:
        """Return the terms that describe the codes, by name."""
        return {name: getattr(self, name) for name in CODE_TERMS}


@torch.no_grad()
def evaluate(model: CategoricalVAE, images: Tensor, seed: int = _SEED) -> Evaluation:
    """Return the ELBO, its terms, the ELBO of the mode, and code usage.

    Costs two evaluations of the decoder for each image.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    shape = (model.latents, model.categories)
    sums = torch.zeros(4, dtype=torch.float64, device=images.device)
    moments = torch.zeros(2, *shape, dtype=torch.float64, device=images.device)
    sum_q, sum_q_squared = moments  # over the images
    for x in _batches(images, _ENCODE_BATCH):
        logits = model.encode(x)  # (B, N, K)
        z = categorical.sample(logits, 1, generator)
        mode = categorical.one_hot_argmax(logits).unsqueeze(0)
        terms = (
            -model.log_likelihood(x, z),
            model.kl(logits),
            model.joint_log_prob(x, mode),
            categorical.entropy(logits),
        )
        sums += torch.stack([term.double().sum() for term in terms])
        q = logits.double().softmax(-1)
        sum_q += q.sum(0)
        sum_q_squared += q.square().sum(0)
    n = len(images)
    distortion, rate, elbo_map, entropy = (sums / n).tolist()
    usage = sum_q / n
    return Evaluation(
        elbo=-distortion - rate,
        rate=rate,
        distortion=distortion,
        elbo_map=elbo_map,
        perplexity=_perplexity(usage),
        active=active_latents(usage, sum_q_squared / n),
        entropy=entropy,
        usage=usage.float(),
    )


def _perplexity(usage: Tensor) -> float:
    return torch.special.entr(usage).sum(-1).exp().mean().item()


def active_latents(mean: Tensor, mean_square: Tensor) -> int:
    """Count the latents with sum_k Var_x(q(z_n = k | x)) > 0.01.

    Args:
        mean: Mean of q over the images, (N, K).
        mean_square: Mean of the square of q over the images, (N, K).

    References:
        Burda, Grosse & Salakhutdinov (2016), https://arxiv.org/abs/1509.00519, who use the
        variance of the posterior mean; the mean of a one-hot code is its probabilities.
    """
    variance = (mean_square - mean.square()).sum(-1)
    return int((variance > _ACTIVE_VARIANCE).sum())


@torch.no_grad()
def importance_weighted(
    model: CategoricalVAE, images: Tensor, samples: int, seed: int = _SEED
) -> float:
    """Return the m-sample bound E[log 1/m sum_i p(x, z_i) / q(z_i | x)], z_i ~ q, m = `samples`.

    In expectation, the bound is at most log p(x) and at least the ELBO, and it rises with m. Costs
    m evaluations of the decoder for each image; or K**N evaluations for all images together, if
    the codes can be enumerated and that is less. The memory does not grow with m.

    Returns:
        The mean over the images, in nats.

    References:
        Burda, Grosse & Salakhutdinov (2016), https://arxiv.org/abs/1509.00519, equation 8.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    decoded = None
    if can_enumerate(model) and model.categories**model.latents <= samples * len(images):
        decoded = _decode_every_code(model)
    for x in _batches(images, _ENCODE_BATCH):
        logits = model.encode(x)
        joint = None if decoded is None else decoded.joint_log_prob(x)  # (B, K**N)
        log_q, cumulative = logits.log_softmax(-1), categorical.cumulative_probabilities(logits)
        log_sum = torch.full((len(x),), -math.inf, device=x.device, dtype=logits.dtype)
        for chunk in _chunks(samples, max(1, _DECODE_BATCH // len(x))):
            index = categorical.draw(cumulative, chunk, generator)  # (S, B, N)
            if joint is None:
                z = categorical.one_hot(index, model.categories, logits.dtype)
                log_p = model.joint_log_prob(x, z)  # (S, B)
            else:
                log_p = joint.gather(1, categorical.position(index, model.categories).T).T
            log_weight = log_p - log_q.gather(-1, index.movedim(0, -1)).sum(1).T
            log_sum = torch.logaddexp(log_sum, log_weight.logsumexp(0))
        total += log_sum.double().sum()
    return (total / len(images)).item() - math.log(samples)


def can_enumerate(model: CategoricalVAE) -> bool:
    """Return whether the model has few enough codes to sum over all of them."""
    return model.categories**model.latents <= EXACT_LIMIT


@torch.no_grad()
def log_likelihood(model: CategoricalVAE, images: Tensor) -> float:
    """Return the exact log p(x) = log sum_z p(x, z) over all K**N codes.

    The log-likelihood of a code, log p(x | z), is `CategoricalVAE.log_likelihood`. Costs K**N
    evaluations of the decoder for all images together.

    Returns:
        The mean over the images, in nats.

    Raises:
        ValueError: There are more than EXACT_LIMIT codes.
    """
    if not can_enumerate(model):
        raise ValueError(f"{model.categories}**{model.latents} codes are more than {EXACT_LIMIT}")
    decoded = _decode_every_code(model)
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    for x in _batches(images, _ENCODE_BATCH):
        total += decoded.joint_log_prob(x).logsumexp(1).double().sum()
    return (total / len(images)).item()


def evaluate_bounds(
    model: CategoricalVAE, images: Tensor, importance_samples: int
) -> dict[str, float | None]:
    """Return every bound of a finished model, and its code usage, by name.

    Args:
        model: The model.
        images: uint8 (n, D).
        importance_samples: m of the importance-weighted bound.

    Returns:
        Bounds, terms of the ELBO and code usage; the linear probe is not among them.
        "log_likelihood" is None if the model has too many codes to sum over all of them.
    """
    evaluation = evaluate(model, images)
    return {
        **evaluation.bound_terms(),
        "importance_weighted": importance_weighted(model, images, importance_samples),
        "log_likelihood": log_likelihood(model, images) if can_enumerate(model) else None,
        **evaluation.code_terms(),
    }


class _DecodedCodes(NamedTuple):
    """All K**N codes, decoded once, so that images can be scored by one matrix product."""

    pixel_logits: Tensor  # (K**N, D)
    constants: Tensor  # (K**N,): the part of log p(x, z) that does not depend on x

    def joint_log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x, z) for every code: images (B, D) -> (B, K**N)."""
        return torch.addmm(self.constants, x, self.pixel_logits.T)


def _decode_every_code(model: CategoricalVAE) -> _DecodedCodes:
    z = categorical.codes(model.latents, model.categories, model.prior_logits.device)
    pixel_logits, constants = [], []
    for part in z.split(_DECODE_BATCH):
        decoded = model.decode(part)  # (C, D)
        pixel_logits.append(decoded)
        constants.append(model.log_prior(part) - model.log_normaliser(decoded))
    return _DecodedCodes(torch.cat(pixel_logits), torch.cat(constants))


def _batches(images: Tensor, size: int) -> Iterator[Tensor]:
    return (to_float(part) for part in images.split(size))


def _chunks(total: int, size: int) -> Iterator[int]:
    yield from [size] * (total // size)
    if total % size:
        yield total % size
