"""What training minimises: where model and estimator meet, and the only place.

One class an objective. What evaluation reports does not depend on them: it is always the discrete
model's, at beta = 1.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from . import categorical
from .estimators import Estimator, GumbelSoftmax, Pathwise
from .model import CategoricalVAE
from .schedules import NonNegativeSchedule, PositiveSchedule, Schedule, Step, schedules_of
from .validation import validated


class Terms(NamedTuple):
    """The training objective of each image, its distortion and its rate, in nats, (B,) each."""

    loss: Tensor
    distortion: Tensor
    rate: Tensor


class TrainingObjective(nn.Module, ABC):
    """Takes images to what is minimised, and owns the model, and what else is trained with it."""

    model: CategoricalVAE
    beta: Schedule

    @abstractmethod
    def forward(self, x: Tensor, step: Step) -> Terms:
        """Images (B, D) in [0, 1], the global step."""

    def schedules(self) -> dict[str, Schedule]:
        """All that varies with the step, by name."""
        return {
            name: schedule
            for module in self.modules()
            for name, schedule in schedules_of(module).items()
        }


class NegativeELBO(TrainingObjective):
    """E_q[-log p(x | z)] + beta KL(q(z | x) || p(z)), differentiated as the estimator sees fit.

    The expectation is the estimator's business; the KL is in closed form, always that of
    Cat(logits). With a relaxed or a deterministic estimator the value is a training objective and
    no bound. Higgins et al. (2017) for beta; Kingma & Welling (2014), equation 3.
    """

    @validated
    def __init__(
        self, model: CategoricalVAE, estimator: Estimator, beta: NonNegativeSchedule = 1.0
    ) -> None:
        super().__init__()
        self.model, self.estimator, self.beta = model, estimator, beta

    def forward(self, x: Tensor, step: Step) -> Terms:
        logits = self.model.encode(x)  # (B, N, K)
        distortion = self.estimator(logits, lambda z: -self.model.log_likelihood(x, z), step)
        rate = self.model.kl(logits)
        return Terms(distortion + self.beta(step) * rate, distortion, rate)


class ImportanceWeighted(TrainingObjective):
    """-log 1/S sum_i w_i, w_i = p(x, z_i) / q(z_i | x), at S samples that carry their gradient.

    The samples are a pathwise estimator's, and so is their gradient, with its bias. At one-hot
    samples of q and beta = 1 the negated loss is the bound of Burda et al., between the ELBO
    (S = 1, with a sampled KL) and log p(x); with a relaxed or a deterministic estimator it is
    none. `beta` is the power of p(z) / q(z | x) in the weights. Distortion and rate are the
    samples' mean and the closed form, for the eye: the loss is not their sum. S evaluations of
    the decoder.

    Burda, Grosse & Salakhutdinov (2016), https://arxiv.org/abs/1509.00519, equation 8.
    """

    @validated
    def __init__(
        self, model: CategoricalVAE, estimator: Pathwise, beta: NonNegativeSchedule = 1.0
    ) -> None:
        super().__init__()
        self.model, self.estimator, self.beta = model, estimator, beta

    def forward(self, x: Tensor, step: Step) -> Terms:
        logits = self.model.encode(x)  # (B, N, K)
        z = self.estimator.sample(logits, step)  # (S, B, N, K)
        weights = _log_weights(self.model, x, logits, z, self.beta(step))
        bound = weights.total.logsumexp(0) - math.log(len(z))
        return Terms(-bound, *weights.mean_terms(self.model, logits))


class VIMCO(TrainingObjective):
    """The importance-weighted bound at S samples of q, with an unbiased gradient of its own.

    The bound is not the expectation of a function of one code, so no estimator can serve it. Each
    sample's score is weighted with what the sample adds to the bound: its weight is replaced by
    the geometric mean of the others for the baseline. S >= 2 evaluations of the decoder; no
    temperature. `beta`, distortion and rate as in ImportanceWeighted.

    Mnih & Rezende (2016), https://arxiv.org/abs/1602.06725.
    """

    @validated
    def __init__(
        self,
        model: CategoricalVAE,
        samples: Annotated[int, Field(ge=2)],
        beta: NonNegativeSchedule = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.samples, self.beta = model, samples, beta

    def forward(self, x: Tensor, step: Step) -> Terms:
        logits = self.model.encode(x)  # (B, N, K)
        z = categorical.sample(logits, self.samples)  # (S, B, N, K)
        weights = _log_weights(self.model, x, logits, z, self.beta(step))
        bound = weights.total.logsumexp(0) - math.log(self.samples)
        signal = bound - _bounds_without_each(weights.total)  # (S, B)
        score = (signal.detach() * weights.log_q).sum(0)
        loss = -(bound + categorical.gradient_of(score))
        return Terms(loss, *weights.mean_terms(self.model, logits))


class ConcreteELBO(TrainingObjective):
    """The negative ELBO of the relaxed model: the KL, too, is of the Concrete densities.

    Codes are points y inside the simplex, q(y | x) a product of Concrete distributions with the
    estimator's temperature and p(y) one with the prior's own; the rate log q(y | x) - log p(y) is
    taken at the sample, on the logarithms of y (ExpConcrete), where nothing underflows, and may be
    negative. At beta = 1 the negated loss bounds the log-likelihood of the relaxed model in
    expectation, not that of the discrete one. Its gradient is unbiased.

    Maddison, Mnih & Teh (2017), https://arxiv.org/abs/1611.00712.
    """

    @validated
    def __init__(
        self,
        model: CategoricalVAE,
        estimator: GumbelSoftmax,
        prior_temperature: PositiveSchedule,
        beta: NonNegativeSchedule = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.estimator, self.beta = model, estimator, beta
        self.prior_temperature = prior_temperature

    def forward(self, x: Tensor, step: Step) -> Terms:
        logits = self.model.encode(x)  # (B, N, K)
        log_y = self.estimator.log_sample(logits, step)  # (S, B, N, K)
        distortion = -self.model.log_likelihood(x, log_y.exp()).mean(0)
        log_q = categorical.exp_concrete_log_prob(logits, self.estimator.temperature(step), log_y)
        log_p = categorical.exp_concrete_log_prob(
            self.model.prior_logits, self.prior_temperature(step), log_y
        )
        rate = (log_q - log_p).mean(0)
        return Terms(distortion + self.beta(step) * rate, distortion, rate)


class _LogWeights(NamedTuple):
    """log p(x, z) - log q(z | x) and what it is made of, (S, B) each."""

    total: Tensor
    log_likelihood: Tensor
    log_q: Tensor

    @torch.no_grad()
    def mean_terms(self, model: CategoricalVAE, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Distortion, mean over the samples, and rate, in closed form: (B,) each."""
        return -self.log_likelihood.mean(0), model.kl(logits)


def _log_weights(
    model: CategoricalVAE, x: Tensor, logits: Tensor, z: Tensor, beta: float | Tensor
) -> _LogWeights:
    log_likelihood, log_q = model.log_likelihood(x, z), categorical.log_prob(logits, z)
    total = log_likelihood + beta * (model.log_prior(z) - log_q)
    return _LogWeights(total, log_likelihood, log_q)


def _bounds_without_each(log_weights: Tensor) -> Tensor:
    """The bound with sample i's log-weight replaced by the mean of the others': (S, B) -> (S, B).

    As an (S, S, B) tensor: a difference of sums would cancel where one weight dominates.
    """
    samples = len(log_weights)
    others = (log_weights.sum(0) - log_weights) / (samples - 1)  # (S, B)
    own = torch.eye(samples, dtype=torch.bool, device=log_weights.device).unsqueeze(-1)
    replaced = torch.where(own, others.unsqueeze(1), log_weights)  # (S, S, B), row i without i
    return replaced.logsumexp(1) - math.log(samples)
