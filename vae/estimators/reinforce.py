"""The score function (REINFORCE) with three kinds of baseline."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from vae.categorical import gradient_of, log_prob, sample
from vae.estimators.base import CodeFunction
from vae.estimators.score_function import ScoreFunction, update_averages
from vae.schedules import Step
from vae.utils.validation import Count, Decay, validated


class Reinforce(ScoreFunction):
    """Weight the score of each of S samples by f, less the mean of f at the other samples.

    Gradient in the logits: the mean over s of (f(z_s) - baseline_s) grad log q(z_s), with
    baseline_s the mean of f over the other samples ("leave one out").

    Bias: none for every f, differentiable or not. The variance falls with S and grows with the
        number of latents.
    Value: an unbiased estimate of L.
    Cost: S >= 2 evaluations of f; no temperature.
    Reference: Kool, van Hoof & Welling (2019), https://openreview.net/forum?id=r1lgTGL5DE.

    Args:
        samples: S, at least 2.
        variance_normalization: Weight of the past in the moving average of the squared signal,
            whose root divides the encoder's gradient; None for no normalisation. See
            `ScoreFunction`.
    """

    @validated
    def __init__(
        self,
        samples: Annotated[int, Field(ge=2)],
        variance_normalization: Decay | None = None,
    ) -> None:
        super().__init__(variance_normalization)
        self.samples = samples

    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        z = sample(logits, self.samples)  # (S, B, N, K)
        loss = f(z)  # (S, B)
        baseline = (loss.sum(0) - loss) / (self.samples - 1)
        advantage = (loss - baseline).detach()
        self.include_signal(advantage)
        return (loss + gradient_of(advantage * log_prob(logits, z))).mean(0)


class ReinforceMovingAverage(ScoreFunction):
    """Weight the score of one sample by f, less a moving average of f over past steps.

    Gradient in the logits: (f(z) - average) grad log q(z).

    Bias: none for every f, because the average does not depend on this step's sample.
    Value: an unbiased estimate of L.
    Cost: one evaluation of f; the average is a buffer.
    Reference: Mnih & Gregor (2014), https://arxiv.org/abs/1402.0030.

    Args:
        decay: Weight of the past in the average, for each step in training mode.
        variance_normalization: Weight of the past in the moving average of the squared signal,
            whose root divides the encoder's gradient; None for no normalisation. See
            `ScoreFunction`.
    """

    average: Tensor
    seen: Tensor

    @validated
    def __init__(self, decay: Decay, variance_normalization: Decay | None = None) -> None:
        super().__init__(variance_normalization)
        self.decay = decay
        self.register_buffer("average", torch.zeros(()))
        # The average starts at 0, and `seen` = 1 - decay^t corrects the bias of that after t
        # steps. (The buffer keeps this name because checkpoints store it.)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        z = sample(logits, 1)
        loss = f(z)  # (1, B)
        advantage = loss.detach() - self.past_average(loss.detach())
        self.include_signal(advantage)
        return (loss + gradient_of(advantage * log_prob(logits, z))).squeeze(0)

    def past_average(self, loss: Tensor) -> Tensor:
        """Return the average over past steps, then include this step in it if in training mode.

        Args:
            loss: This step's values of f, (1, B). They are ignored if their mean is not finite.

        Returns:
            The average, a scalar; 0 before the first step.
        """
        past = self.average / self.seen.clamp_min(torch.finfo(self.seen.dtype).tiny)
        if self.training:
            mean = loss.mean()
            averages = [(self.average, mean), (self.seen, torch.ones_like(mean))]
            update_averages(self.decay, averages)
        return past


class ReinforceLearnedBaseline(ReinforceMovingAverage):
    """Weight the score of one sample by f, less a moving average and a network's prediction.

    Gradient in the logits: (f(z) - average - network(log p)) grad log q(z). The network is fitted
    by least squares to f - average in the same backward pass. It learns from nothing else, and the
    encoder learns nothing from the fit.

    Bias: none for every f, because the prediction does not depend on the sample.
    Value: an unbiased estimate of L.
    Cost: one evaluation of f; owns parameters and a buffer.
    Reference: the baselines of NVIL, Mnih & Gregor (2014), https://arxiv.org/abs/1402.0030. Their
        network sees the image. This one sees the image's log-probabilities, so that the estimator
        needs only a distribution and a function.

    Args:
        latents: N.
        categories: K.
        hidden: Units of the network's hidden layer.
        decay: Weight of the past in the average, for each step in training mode.
        variance_normalization: Weight of the past in the moving average of the squared signal,
            whose root divides the encoder's gradient; None for no normalisation. See
            `ScoreFunction`.
    """

    @validated
    def __init__(
        self,
        latents: Count,
        categories: Count,
        hidden: Count,
        decay: Decay,
        variance_normalization: Decay | None = None,
    ) -> None:
        super().__init__(decay, variance_normalization)
        self.baseline = nn.Sequential(
            nn.Flatten(), nn.Linear(latents * categories, hidden), nn.Tanh(), nn.Linear(hidden, 1)
        )

    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        z = sample(logits, 1)
        loss = f(z)  # (1, B)
        centred = loss.detach() - self.past_average(loss.detach())
        predicted = self.baseline(logits.detach().log_softmax(-1)).squeeze(-1)  # (B,)
        advantage = (centred - predicted).detach()
        self.include_signal(advantage)
        fit = (centred - predicted).square()
        score = advantage * log_prob(logits, z)
        return (loss + gradient_of(score) + gradient_of(fit)).squeeze(0)
