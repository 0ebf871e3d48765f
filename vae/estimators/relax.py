"""The score function with a relaxed sample for a control variate."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ..categorical import conditional_gumbel, gradient_of, gumbel_noise, one_hot_argmax
from ..schedules import Step
from ..validation import Count, Positive, validated
from .base import Estimator, Objective


class ControlVariate(Estimator):
    """(f(b) - c(z')) grad log q(b) + grad c(z) - grad c(z'): b = argmax z, z' ~ z given b.

    z = log p + G, and c is any differentiable function of it. Unbiased for every f and every c.
    c is fitted by minimising the square of the gradient estimate, which has the same gradient as
    its variance; the fit reaches the parameters of c and nothing else, and neither does c reach
    whatever f closes over. Three evaluations of f and a double backward.

    Grathwohl et al. (2018), https://arxiv.org/abs/1711.00123.
    """

    @abstractmethod
    def control(self, z: Tensor, f: Objective) -> Tensor:
        """c: perturbed log-probabilities (1, B, N, K) -> (B,)."""

    def forward(self, logits: Tensor, f: Objective, step: Step) -> Tensor:
        theta = logits.detach().requires_grad_()
        log_p = theta.log_softmax(-1)
        z = log_p + gumbel_noise(log_p, 1)  # (1, B, N, K)
        b = one_hot_argmax(z.detach())
        loss = f(b).squeeze(0)  # (B,)
        c, c_given_b = self.control(z, f), self.control(conditional_gumbel(log_p, b), f)
        (slope,) = torch.autograd.grad((c - c_given_b).sum(), theta, create_graph=True)
        score = b.squeeze(0) - log_p.detach().exp()  # grad log q(b)
        advantage = (loss.detach() - c_given_b)[:, None, None]
        gradient = advantage * score + slope  # (B, N, K)
        fit = self._fit(gradient.square().sum((-2, -1)).mean())
        return loss + gradient_of((gradient.detach() * logits).sum((-2, -1))) + fit

    def _fit(self, square: Tensor) -> Tensor:
        """Zero, with the gradient of `square` in the parameters of c and in nothing else."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(square, parameters)
        return sum(gradient_of(p * s).sum() for p, s in zip(parameters, slopes, strict=True))


class RelaxedObjective(nn.Module):
    """eta f(softmax(z / lambda)), with eta and lambda learned."""

    def __init__(self, temperature: float, scale: float) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, z: Tensor, f: Objective) -> Tensor:
        """Perturbed log-probabilities (1, B, N, K) -> (B,)."""
        return self.scale * f((z / self.log_temperature.exp()).softmax(-1)).squeeze(0)


class Rebar(ControlVariate):
    """The control variate is f itself, at the relaxed sample: c(z) = eta f(softmax(z / lambda)).

    Unbiased for every f that is differentiable inside the simplex.

    Tucker et al. (2017), https://arxiv.org/abs/1703.07370.
    """

    @validated
    def __init__(self, temperature: Positive, scale: float) -> None:
        super().__init__()
        self.relaxed = RelaxedObjective(temperature, scale)

    def control(self, z: Tensor, f: Objective) -> Tensor:
        return self.relaxed(z, f)


class Relax(ControlVariate):
    """REBAR's control variate plus a network of z.

    Grathwohl et al. (2018), https://arxiv.org/abs/1711.00123.
    """

    @validated
    def __init__(
        self, latents: Count, categories: Count, hidden: Count, temperature: Positive, scale: float
    ) -> None:
        super().__init__()
        self.relaxed = RelaxedObjective(temperature, scale)
        self.network = nn.Sequential(
            nn.Linear(latents * categories, hidden), nn.LeakyReLU(), nn.Linear(hidden, 1)
        )

    def control(self, z: Tensor, f: Objective) -> Tensor:
        return self.relaxed(z, f) + self.network(z.squeeze(0).flatten(1)).squeeze(-1)
