"""The score function with a relaxed sample for a control variate."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from ..categorical import conditional_gumbel, gradient_of, gumbel_noise, one_hot_argmax
from ..schedules import Step
from ..validation import Count, Positive, validated
from .base import Estimator, Objective

Parameters = dict[str, Tensor]


class ControlVariate(Estimator):
    """(f(b) - c(z')) grad log q(b) + grad c(z) - grad c(z'): b = argmax z, z' ~ z given b.

    z = log p + G, and c is any differentiable function of it. Unbiased for every f and every c.
    c is fitted by minimising the square of the gradient estimate, which has the same gradient as
    its variance; the fit reaches the parameters of c and nothing else, and neither does c reach
    whatever f closes over. Three evaluations of f and a double backward.

    Grathwohl et al. (2018), https://arxiv.org/abs/1711.00123.
    """

    control: nn.Module
    """c: perturbed log-probabilities (1, B, N, K) and f -> (B,)."""

    def forward(self, logits: Tensor, f: Objective, step: Step) -> Tensor:
        theta = logits.detach()
        noise = gumbel_noise(theta, 1)
        b = one_hot_argmax(theta.log_softmax(-1) + noise)  # (1, B, N, K)
        loss = f(b).squeeze(0)  # (B,)
        score = b.squeeze(0) - theta.softmax(-1)  # grad log q(b)

        def difference(theta: Tensor, own: Parameters) -> tuple[Tensor, Tensor]:
            """c(z) - c(z'), and c(z') beside it."""
            log_p = theta.log_softmax(-1)
            c = functional_call(self.control, own, (log_p + noise, f))
            c_given_b = functional_call(self.control, own, (conditional_gumbel(log_p, b), f))
            return (c - c_given_b).sum(), c_given_b

        def square(own: Parameters) -> tuple[Tensor, Tensor]:
            """Of the estimate, mean over the batch, and the estimate (B, N, K) beside it."""
            slope, c_given_b = grad(difference, has_aux=True)(theta, own)
            estimate = (loss.detach() - c_given_b)[:, None, None] * score + slope
            return estimate.square().sum((-2, -1)).mean(), estimate

        own = dict(self.control.named_parameters())
        with torch.no_grad():  # but for what grad asks for itself
            slopes, estimate = grad(square, has_aux=True)(own)
        fit = sum(gradient_of(own[name] * slope).sum() for name, slope in slopes.items())
        return loss + gradient_of((estimate * logits).sum((-2, -1))) + fit


class RelaxedObjective(nn.Module):
    """eta f(softmax(z / lambda)), with eta and lambda learned."""

    def __init__(self, temperature: float, scale: float) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, z: Tensor, f: Objective) -> Tensor:
        """Perturbed log-probabilities (1, B, N, K) -> (B,)."""
        return self.scale * f((z / self.log_temperature.exp()).softmax(-1)).squeeze(0)


class RelaxedObjectiveAndNetwork(RelaxedObjective):
    """eta f(softmax(z / lambda)) + a network of z."""

    def __init__(
        self, latents: int, categories: int, hidden: int, temperature: float, scale: float
    ) -> None:
        super().__init__(temperature, scale)
        self.network = nn.Sequential(
            nn.Linear(latents * categories, hidden), nn.LeakyReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, z: Tensor, f: Objective) -> Tensor:
        return super().forward(z, f) + self.network(z.squeeze(0).flatten(1)).squeeze(-1)


class Rebar(ControlVariate):
    """The control variate is f itself, at the relaxed sample: c(z) = eta f(softmax(z / lambda)).

    Unbiased for every f that is differentiable inside the simplex.

    Tucker et al. (2017), https://arxiv.org/abs/1703.07370.
    """

    @validated
    def __init__(self, temperature: Positive, scale: float) -> None:
        super().__init__()
        self.control = RelaxedObjective(temperature, scale)


class Relax(ControlVariate):
    """REBAR's control variate plus a network of z.

    Grathwohl et al. (2018), https://arxiv.org/abs/1711.00123.
    """

    @validated
    def __init__(
        self, latents: Count, categories: Count, hidden: Count, temperature: Positive, scale: float
    ) -> None:
        super().__init__()
        self.control = RelaxedObjectiveAndNetwork(latents, categories, hidden, temperature, scale)
