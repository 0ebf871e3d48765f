"""The training objectives: the only place in training where model and estimator meet.

Each public subclass of `TrainingObjective` is one objective. What evaluation reports does not
depend on the objective: it is always about the discrete model at beta = 1.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from vae import categorical
from vae.estimators import Estimator, GumbelSoftmax, Pathwise
from vae.model import CategoricalVAE
from vae.schedules import (
    Constant,
    NonNegativeSchedule,
    PositiveSchedule,
    Schedule,
    Step,
    Value,
    schedules_of,
)
from vae.utils.validation import validated

_ONE = Constant(1.0)


class Terms(NamedTuple):
    """The training loss of each image and two terms to log, in nats: (B,) each."""

    loss: Tensor  # what is minimised
    distortion: Tensor  # an estimate of E_q[-log p(x | z)]
    rate: Tensor  # KL(q(z | x) || p(z)), or what the objective uses in its place


class TrainingObjective(nn.Module, ABC):
    """Map images to the loss that training minimises.

    An objective owns the model and everything else that is trained with it.
    """

    takes_estimator: ClassVar[type[Estimator] | None]
    """The class of estimators that the objective accepts; None if it takes no estimator."""

    def __init__(self, model: CategoricalVAE, beta: Schedule) -> None:
        super().__init__()
        self.model = model
        self.beta = beta

    @abstractmethod
    def forward(self, x: Tensor, step: Step) -> Terms:
        """Return the loss and its terms: images (B, D) in [0, 1], the global step -> Terms."""

    def schedules(self) -> dict[str, Schedule]:
        """Return every schedule of the objective and its estimator, by name."""
        return {
            name: schedule
            for module in self.modules()
            for name, schedule in schedules_of(module).items()
        }


class NegativeELBO(TrainingObjective):
    """Minimise E_q[-log p(x | z)] + beta KL(q(z | x) || p(z)), the negative ELBO.

    The estimator computes the expectation and its gradient. The KL of Cat(logits) is in closed
    form. With a relaxed or a deterministic estimator the value is a training objective and not a
    bound.

    Args:
        model: The VAE.
        estimator: Any estimator.
        beta: Weight of the KL, a number or a schedule.

    References:
        Kingma & Welling (2014), https://arxiv.org/abs/1312.6114, equation 3; Higgins et al. (2017)
        for beta.
    """

    takes_estimator = Estimator

    @validated
    def __init__(
        self, model: CategoricalVAE, estimator: Estimator, beta: NonNegativeSchedule = _ONE
    ) -> None:
        super().__init__(model, beta)
        self.estimator = estimator

    def forward(self, x: Tensor, step: Step) -> Terms:
        # Distortion and rate share the scale, so that it does not change the weight of the rate.
        logits = self.estimator.scale_gradient(self.model.encode(x))  # (B, N, K)
        distortion = self.estimator(logits, lambda z: -self.model.log_likelihood(x, z), step)
        rate = self.model.kl(logits)
        return Terms(distortion + self.beta(step) * rate, distortion, rate)


class ImportanceWeighted(TrainingObjective):
    """Minimise -log((1/S) sum_i w_i) with w_i = p(x, z_i) / q(z_i | x) at differentiable samples.

    A pathwise estimator provides the S samples z_i and their gradient, which has the bias of the
    estimator. With one-hot samples of q and beta = 1 the negated loss is the bound of Burda et
    al. In expectation it lies between the ELBO (S = 1, with a sampled KL) and log p(x). With a
    relaxed or a deterministic estimator it is not a bound.

    Distortion (the mean over the samples) and rate (in closed form) are only logged: the loss is
    not their sum. Costs S evaluations of the decoder.

    Args:
        model: The VAE.
        estimator: A pathwise estimator, which draws S samples.
        beta: Exponent of p(z) / q(z | x) in the weights, a number or a schedule.

    References:
        Burda, Grosse & Salakhutdinov (2016), https://arxiv.org/abs/1509.00519, equation 8.
    """

    takes_estimator = Pathwise

    @validated
    def __init__(
        self, model: CategoricalVAE, estimator: Pathwise, beta: NonNegativeSchedule = _ONE
    ) -> None:
        super().__init__(model, beta)
        self.estimator = estimator

    def forward(self, x: Tensor, step: Step) -> Terms:
        logits = self.model.encode(x)  # (B, N, K)
        z = self.estimator.sample(logits, step)  # (S, B, N, K)
        weights = _log_weights(self.model, x, logits, z, self.beta(step))
        bound = weights.total.logsumexp(0) - math.log(len(z))
        return Terms(-bound, *weights.mean_terms(self.model, logits))


class VIMCO(TrainingObjective):
    """Minimise the negative importance-weighted bound at S samples of q, without an estimator.

    The bound L(w_1, ..., w_S) is not the expectation of a function of one code, so no
    estimator can give its gradient, and VIMCO computes it. The score of sample i is weighted by

        L(w_1, ..., w_S) - L(w_1, ..., m_i, ..., w_S),

    in which m_i replaces w_i. The baseline `geometric` takes the geometric mean of the other
    weights for m_i, and `leave_out` takes 0 (VIMCO-star). Neither depends on sample i, so the
    gradient is unbiased with both of them; only its variance differs.

    Distortion and rate are only logged, as those of ImportanceWeighted are. Costs S evaluations of
    the decoder.

    Args:
        model: The VAE.
        samples: S, at least 2.
        beta: Exponent of p(z) / q(z | x) in the weights, a number or a schedule.
        baseline: What replaces the weight of a sample in its baseline.

    References:
        Mnih & Rezende (2016), https://arxiv.org/abs/1602.06725, for `geometric`; Daudel et al.
        (2026), https://arxiv.org/abs/2602.01412, for `leave_out`.
    """

    takes_estimator = None

    @validated
    def __init__(
        self,
        model: CategoricalVAE,
        samples: Annotated[int, Field(ge=2)],
        beta: NonNegativeSchedule = _ONE,
        baseline: Literal["geometric", "leave_out"] = "geometric",
    ) -> None:
        super().__init__(model, beta)
        self.samples, self.baseline = samples, baseline

    def forward(self, x: Tensor, step: Step) -> Terms:
        logits = self.model.encode(x)  # (B, N, K)
        z = categorical.sample(logits, self.samples)  # (S, B, N, K)
        weights = _log_weights(self.model, x, logits, z, self.beta(step))
        bound = weights.total.logsumexp(0) - math.log(self.samples)
        if self.baseline == "geometric":
            replacements = _means_of_others(weights.total)
        else:
            replacements = torch.full_like(weights.total, -math.inf)
        signal = bound - _bounds_with_each_replaced(weights.total, replacements)  # (S, B)
        score = (signal.detach() * weights.log_q).sum(0)
        loss = -(bound + categorical.gradient_of(score))
        return Terms(loss, *weights.mean_terms(self.model, logits))


class ReweightedWakeSleep(TrainingObjective):
    """Train the decoder on the importance-weighted bound and the encoder on its weights.

    This is the wake-wake form of reweighted wake-sleep. With S samples z_i of q and the
    normalised weights v_i = w_i / sum_j w_j, held constant, the decoder and the prior minimise
    the negated bound, and the encoder minimises

        -sum_i v_i log q(z_i | x).

    If beta = 1, the gradient of the encoder tends to that of KL(p(z | x) || q(z | x)) as S grows.
    For a finite S it has a bias, and it is not the gradient of the bound. For another beta the
    encoder's target is proportional to p(x | z) p(z)^beta q(z | x)^(1 - beta). This target equals
    q if q is proportional to p(z) p(x | z)^(1 / beta), which is also the best q of NegativeELBO.

    The value of the loss is the negated bound. Distortion and rate are only logged, as those of
    ImportanceWeighted are. Costs S evaluations of the decoder.

    Args:
        model: The VAE.
        samples: S, at least 2, because a single weight is always 1.
        beta: Exponent of p(z) / q(z | x) in the weights, a number or a schedule.

    References:
        Bornschein & Bengio (2015), https://arxiv.org/abs/1406.2751; Le et al. (2019),
        https://arxiv.org/abs/1805.10469, for the wake-wake form.
    """

    takes_estimator = None

    @validated
    def __init__(
        self,
        model: CategoricalVAE,
        samples: Annotated[int, Field(ge=2)],
        beta: NonNegativeSchedule = _ONE,
    ) -> None:
        super().__init__(model, beta)
        self.samples = samples

    def forward(self, x: Tensor, step: Step) -> Terms:
        logits = self.model.encode(x)  # (B, N, K)
        z = categorical.sample(logits, self.samples)  # (S, B, N, K)
        weights = _log_weights(self.model, x, logits.detach(), z, self.beta(step))
        bound = weights.total.logsumexp(0) - math.log(self.samples)
        shares = weights.total.detach().softmax(0)  # (S, B)
        score = (shares * categorical.log_prob(logits, z)).sum(0)
        loss = -(bound + categorical.gradient_of(score))
        return Terms(loss, *weights.mean_terms(self.model, logits))


class ConcreteELBO(TrainingObjective):
    """Minimise the negative ELBO of the relaxed model, with the KL of Concrete densities.

    The codes are points y inside the simplex. q(y | x) is a product of Concrete distributions at
    the estimator's temperature, and p(y) is one at the prior's temperature. The rate
    log q(y | x) - log p(y) is computed at the sample and may be negative. The densities are those
    of log y, which do not underflow.

    At beta = 1 the negated loss is, in expectation, a lower bound on the log-likelihood of the
    relaxed model, not of the discrete one. Its gradient is unbiased. Costs one evaluation of the
    decoder per sample.

    Args:
        model: The VAE.
        estimator: GumbelSoftmax.
        prior_temperature: Temperature of p(y), a number or a schedule.
        beta: Weight of the rate, a number or a schedule.

    References:
        Maddison, Mnih & Teh (2017), https://arxiv.org/abs/1611.00712.
    """

    takes_estimator = GumbelSoftmax

    @validated
    def __init__(
        self,
        model: CategoricalVAE,
        estimator: GumbelSoftmax,
        prior_temperature: PositiveSchedule,
        beta: NonNegativeSchedule = _ONE,
    ) -> None:
        super().__init__(model, beta)
        self.estimator = estimator
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
    """The log-weights of the samples and their parts, (S, B) each."""

    total: Tensor  # log p(x | z) + beta (log p(z) - log q(z | x))
    log_likelihood: Tensor
    log_q: Tensor

    @torch.no_grad()
    def mean_terms(self, model: CategoricalVAE, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distortion, a mean over samples, and the rate, in closed form: (B,) each."""
        return -self.log_likelihood.mean(0), model.kl(logits)


def _log_weights(
    model: CategoricalVAE, x: Tensor, logits: Tensor, z: Tensor, beta: Value
) -> _LogWeights:
    log_likelihood, log_q = model.log_likelihood(x, z), categorical.log_prob(logits, z)
    total = log_likelihood + beta * (model.log_prior(z) - log_q)
    return _LogWeights(total, log_likelihood, log_q)


def _means_of_others(log_weights: Tensor) -> Tensor:
    """Return, for each sample, the mean of the log-weights of the other samples: (S, B)."""
    return (log_weights.sum(0) - log_weights) / (len(log_weights) - 1)


def _bounds_with_each_replaced(log_weights: Tensor, replacements: Tensor) -> Tensor:
    """Return, for each sample, the bound if its log-weight were its replacement.

    The computation uses an (S, S, B) tensor. A difference of sums would need less memory,
    but would lose all precision to cancellation if one weight dominates.

    Args:
        log_weights: (S, B).
        replacements: (S, B); minus infinity leaves the sample out of the sum.

    Returns:
        Bounds (S, B).
    """
    samples = len(log_weights)
    diagonal = torch.eye(samples, dtype=torch.bool, device=log_weights.device).unsqueeze(-1)
    replaced = torch.where(
        diagonal, replacements.unsqueeze(1), log_weights
    )  # (S, S, B): row i has weight i replaced
    return replaced.logsumexp(1) - math.log(samples)
