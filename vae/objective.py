"""The negative ELBO: where model and estimator meet, and the only place."""

from typing import NamedTuple

from torch import Tensor, nn

from .estimators import Estimator
from .model import CategoricalVAE
from .schedules import NonNegativeSchedule, Step
from .validation import validated


class Terms(NamedTuple):
    """The training objective of each image and its two terms, in nats, (B,) each."""

    loss: Tensor  # distortion + beta * rate
    distortion: Tensor
    rate: Tensor


class NegativeELBO(nn.Module):
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
        """Images (B, D) in [0, 1], the global step."""
        logits = self.model.encode(x)  # (B, N, K)
        distortion = self.estimator(logits, lambda z: -self.model.log_likelihood(x, z), step)
        rate = self.model.kl(logits)
        return Terms(distortion + self.beta(step) * rate, distortion, rate)
