"""Numbers that do not depend on the estimator: bounds on log p(x), and how the codes are used.

All of the discrete model, at one-hot codes, in nats per image, with beta = 1. Images are uint8
(n, D) on the model's device. Noise comes from a generator with a fixed seed of its own, so the
same model gives the same numbers, and evaluating changes nothing else that is random.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import categorical
from .data import to_float
from .model import CategoricalVAE

EXACT_LIMIT = 2**14
"""The most codes for which log p(x) is summed exactly."""

CODE_TERMS = ("perplexity", "active", "entropy")
"""What is said of the codes, beside the bounds."""

_SEED = 30_000
_IMAGES = 1_000  # encoded at once
_ROWS = 10_000  # codes at once: 30 MB of pixel logits
_ACTIVE = 0.01


class Evaluation(NamedTuple):
    """One pass over the images, with one code sampled for each."""

    elbo: float  # E_q[log p(x | z)] - KL under q = Cat(logits), one sample: a bound in expectation
    rate: float  # KL(q(z | x) || p(z)), in closed form
    distortion: float  # E_q[-log p(x | z)]
    elbo_map: float  # log p(x, z*), z* = argmax q(z | x): the ELBO of the point mass at the mode
    perplexity: float  # exp(entropy) of the aggregate q(z_n) = mean_x q(z_n | x), mean over n
    active: int  # latents whose q(z_n | x) depends on x: see `active_latents`
    entropy: float  # of q(z | x), summed over the latents
    usage: Tensor  # (N, K), the aggregate posterior

    def bound_terms(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("elbo", "rate", "distortion", "elbo_map")}

    def code_terms(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in CODE_TERMS}


@torch.no_grad()
def evaluate(model: CategoricalVAE, images: Tensor, seed: int = _SEED) -> Evaluation:
    """ELBO, its terms, the ELBO of the mode, and code usage. Two decodes an image."""
    generator = torch.Generator(images.device).manual_seed(seed)
    shape = (model.latents, model.categories)
    sums = torch.zeros(4, dtype=torch.float64, device=images.device)
    first, second = torch.zeros(2, *shape, dtype=torch.float64, device=images.device)
    for x in _batches(images, _IMAGES):
        logits = model.encode(x)  # (B, N, K)
        z = categorical.sample(logits, 1, generator)
        mode = categorical.one_hot_argmax(logits).unsqueeze(0)
        distortion = -model.log_likelihood(x, z)
        rate = model.kl(logits)
        elbo_map = model.joint_log_prob(x, mode)
        terms = (distortion, rate, elbo_map, categorical.entropy(logits))
        sums += torch.stack([term.double().sum() for term in terms])
        q = logits.double().softmax(-1)
        first += q.sum(0)
        second += q.square().sum(0)
    n = len(images)
    distortion, rate, elbo_map, entropy = (sums / n).tolist()
    usage = first / n
    return Evaluation(
        elbo=-distortion - rate,
        rate=rate,
        distortion=distortion,
        elbo_map=elbo_map,
        perplexity=_perplexity(usage),
        active=active_latents(usage, second / n),
        entropy=entropy,
        usage=usage.float(),
    )


def _perplexity(usage: Tensor) -> float:
    return torch.special.entr(usage).sum(-1).exp().mean().item()


def active_latents(mean: Tensor, mean_square: Tensor) -> int:
    """How many latents have sum_k Var_x(q(z_n = k | x)) > 0.01, from the (N, K) moments over x.

    Burda, Grosse & Salakhutdinov (2016), https://arxiv.org/abs/1509.00519: there the
    variance of the posterior mean; a one-hot's mean is its probabilities.
    """
    variance = (mean_square - mean.square()).sum(-1)
    return int((variance > _ACTIVE).sum())


@torch.no_grad()
def importance_weighted(
    model: CategoricalVAE, images: Tensor, samples: int, seed: int = _SEED
) -> float:
    """The m-sample bound E[log 1/m sum_i p(x, z_i) / q(z_i | x)], z_i ~ q(z | x), at m = samples.

    A lower bound on log p(x) in expectation, no lower than the ELBO, rising with m. Costs m
    decodes an image, or one of each code where that is less; memory does not grow with m.
    Burda, Grosse & Salakhutdinov (2016), https://arxiv.org/abs/1509.00519, equation 8.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    every = None
    if can_enumerate(model) and model.categories**model.latents <= samples * len(images):
        every = _EveryCode(model)
    for x in _batches(images, _IMAGES):
        logits = model.encode(x)
        joint = None if every is None else every.joint_log_prob(x)  # (B, K**N)
        log_sum = torch.full((len(x),), -math.inf, device=x.device, dtype=logits.dtype)
        for chunk in _chunks(samples, max(1, _ROWS // len(x))):
            z = categorical.sample(logits, chunk, generator)  # (S, B, N, K)
            if joint is None:
                log_p = model.joint_log_prob(x, z)
            else:
                log_p = joint.gather(1, categorical.index_of(z).T).T
            log_weight = log_p - categorical.log_prob(logits, z)
            log_sum = torch.logaddexp(log_sum, log_weight.logsumexp(0))
        total += log_sum.double().sum()
    return (total / len(images)).item() - math.log(samples)


def can_enumerate(model: CategoricalVAE) -> bool:
    return model.categories**model.latents <= EXACT_LIMIT


class _EveryCode:
    """All K**N codes, each decoded once, to be scored against images by a matrix product."""

    def __init__(self, model: CategoricalVAE) -> None:
        z = categorical.codes(model.latents, model.categories, model.prior_logits.device)
        pixel_logits, constants = [], []
        for part in z.split(_ROWS):
            decoded = model.decode(part)  # (C, D)
            pixel_logits.append(decoded)
            constants.append(model.log_prior(part) - model.log_normaliser(decoded))
        self._pixel_logits, self._constants = torch.cat(pixel_logits), torch.cat(constants)

    def joint_log_prob(self, x: Tensor) -> Tensor:
        """log p(x, z): images (B, D) -> (B, K**N)."""
        return torch.addmm(self._constants, x, self._pixel_logits.T)


@torch.no_grad()
def log_likelihood(model: CategoricalVAE, images: Tensor) -> float:
    """log p(x) = log sum_z p(x, z), exact, over all K**N codes; each is decoded once.

    Raises ValueError where there are more than EXACT_LIMIT codes.
    """
    if not can_enumerate(model):
        raise ValueError(f"{model.categories}**{model.latents} codes are more than {EXACT_LIMIT}")
    every = _EveryCode(model)
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    for x in _batches(images, _IMAGES):
        total += every.joint_log_prob(x).logsumexp(1).double().sum()
    return (total / len(images)).item()


def bounds(
    model: CategoricalVAE, images: Tensor, importance_samples: int
) -> dict[str, float | None]:
    """Everything that is reported of a finished model, by name; None where it cannot be had."""
    measured = evaluate(model, images)
    return {
        **measured.bound_terms(),
        "importance_weighted": importance_weighted(model, images, importance_samples),
        "log_likelihood": log_likelihood(model, images) if can_enumerate(model) else None,
        **measured.code_terms(),
    }


def _batches(images: Tensor, size: int) -> Iterator[Tensor]:
    return (to_float(part) for part in images.split(size))


def _chunks(total: int, size: int) -> Iterator[int]:
    yield from [size] * (total // size)
    if total % size:
        yield total % size
