"""The base class of score functions: moving averages and variance normalisation."""

import torch
from torch import Tensor

from vae.categorical import gradient_of
from vae.estimators.base import Estimator
from vae.utils.validation import Decay, validated


class ScoreFunction(Estimator):
    """A score function (REINFORCE) that can normalise the encoder's gradient by its recent size.

    The learning signal is the factor of the score: f minus its baseline and control variate. Let
    sigma be the root of a moving average of the squared signal over past steps. Variance
    normalisation divides the encoder's gradient by max(1, sigma).

    Mnih & Gregor (2014) divide the signal. Their signal contains the terms of the KL, but f does
    not. If f alone were divided, the KL would get more weight. `scale_gradient` therefore divides
    the gradient of f and that of the KL. The encoder's gradient becomes shorter and keeps its
    expected direction. The decoder's gradient does not change.

    Reference: Mnih & Gregor (2014), https://arxiv.org/abs/1402.0030, for the normalisation.

    Args:
        variance_normalization: Weight of the past in the average of the squared signal, for each
            step in training mode. None for no normalisation.
    """

    square: Tensor
    square_weight: Tensor

    @validated
    def __init__(self, variance_normalization: Decay | None = None) -> None:
        super().__init__()
        self.variance_normalization = variance_normalization
        if variance_normalization is not None:
            # `square_weight` = 1 - decay^t corrects the bias of an average that starts at 0.
            self.register_buffer("square", torch.zeros(()))
            self.register_buffer("square_weight", torch.zeros(()))

    def scale_gradient(self, logits: Tensor) -> Tensor:
        if self.variance_normalization is None:
            return logits
        tiny = torch.finfo(self.square_weight.dtype).tiny
        deviation = (self.square / self.square_weight.clamp_min(tiny)).sqrt()
        return logits.detach() + gradient_of(logits) / deviation.clamp_min(1)

    def include_signal(self, signal: Tensor) -> None:
        """Include this step's learning signal (S, B) in the moving average, if there is one."""
        if self.variance_normalization is not None and self.training:
            square = signal.square().mean()
            averages = [(self.square, square), (self.square_weight, torch.ones_like(square))]
            update_averages(self.variance_normalization, averages)


def update_averages(decay: float, averages: list[tuple[Tensor, Tensor]]) -> None:
    """Update moving averages in place, or none of them if a value is not finite.

    Args:
        decay: Weight of the past.
        averages: The averages and this step's values, scalars.
    """
    is_finite = torch.stack([value.isfinite() for _, value in averages]).all()
    for average, value in averages:
        updated = average * decay + value.to(average.dtype) * (1 - decay)
        average.copy_(torch.where(is_finite, updated, average))
