"""REBAR and RELAX: the score function with a relaxed sample as its control variate."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from vae.categorical import conditional_gumbel, gradient_of, gumbel_noise, one_hot_argmax
from vae.estimators.base import CodeFunction, Estimator
from vae.schedules import Step
from vae.utils.validation import Count, Positive, validated

Parameters = dict[str, Tensor]


class ControlVariate(Estimator):
    """Subtract a control variate c from f in the score function, and add c's own gradient back.

    Let z = log p + G be the perturbed log-probabilities, b = argmax z the code, and z' a second
    draw of z given b. Here z is not a code, unlike in the other estimators. The gradient in the
    logits is

        (f(b) - c(z')) grad log q(b) + grad c(z) - grad c(z'),

    which is unbiased for every f and every differentiable c.

    The parameters of c are fitted by minimising the squared gradient estimate. Because the
    estimate is unbiased, the expected gradient of its square equals the gradient of its variance.
    The fit changes the parameters of c alone, and the decoder gets no gradient through c. The
    gradient of the fit is scaled for the mean of the returned values over the batch, which
    training minimises.

    References:
        Grathwohl et al. (2018), https://arxiv.org/abs/1711.00123.
    """

    control: nn.Module
    """c: takes perturbed log-probabilities (1, B, N, K) and f, returns (B,)."""

    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        theta = logits.detach()
        noise = gumbel_noise(theta, 1)
        b = one_hot_argmax(theta.log_softmax(-1) + noise)  # (1, B, N, K)
        loss = f(b).squeeze(0)  # (B,)
        score = b.squeeze(0) - theta.softmax(-1)  # grad log q(b)

        def difference(theta: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
            """Return c(z) - c(z'), summed over the batch, and c(z') as an extra output."""
            log_p = theta.log_softmax(-1)
            c = functional_call(self.control, parameters, (log_p + noise, f))
            c_given_b = functional_call(
                self.control, parameters, (conditional_gumbel(log_p, b), f)
            )
            return (c - c_given_b).sum(), c_given_b

        def square(parameters: Parameters) -> tuple[Tensor, Tensor]:
            """Return the mean squared estimate, and the estimate (B, N, K) as an extra output."""
            slope, c_given_b = grad(difference, has_aux=True)(theta, parameters)
            estimate = (loss.detach() - c_given_b)[:, None, None] * score + slope
            return estimate.square().sum((-2, -1)).mean(), estimate

        parameters: Parameters = dict(self.control.named_parameters())
        with torch.no_grad():  # torch.func.grad records what it needs by itself
            slopes, estimate = grad(square, has_aux=True)(parameters)
        fit = sum(gradient_of(parameters[name] * slope).sum() for name, slope in slopes.items())
        return loss + gradient_of((estimate * logits).sum((-2, -1))) + fit


class RelaxedObjective(nn.Module):
    """The control variate eta f(softmax(z / lambda)), with eta and lambda learned."""

    def __init__(self, temperature: float, scale: float) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, z: Tensor, f: CodeFunction) -> Tensor:
        return self.scale * f((z / self.log_temperature.exp()).softmax(-1)).squeeze(0)


class RelaxedObjectiveAndNetwork(RelaxedObjective):
    """The control variate eta f(softmax(z / lambda)) + network(z)."""

    def __init__(
        self, latents: int, categories: int, hidden: int, temperature: float, scale: float
    ) -> None:
        super().__init__(temperature, scale)
        self.network = nn.Sequential(
            nn.Linear(latents * categories, hidden), nn.LeakyReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, z: Tensor, f: CodeFunction) -> Tensor:
        return super().forward(z, f) + self.network(z.squeeze(0).flatten(1)).squeeze(-1)


class Rebar(ControlVariate):
    """Use f itself at a relaxed sample as the control variate of the score function.

    Gradient in the logits: as in `ControlVariate`, with c(z) = eta f(softmax(z / lambda)).

    Bias: none for every f that is differentiable inside the simplex.
    Value: an unbiased estimate of L.
    Cost: three evaluations of f and a double backward pass; has trainable parameters.
    Reference: Tucker et al. (2017), https://arxiv.org/abs/1703.07370.

    Args:
        temperature: Initial value of lambda, which is learned.
        scale: Initial value of eta, which is learned.
    """

    @validated
    def __init__(self, temperature: Positive, scale: float) -> None:
        super().__init__()
        self.control = RelaxedObjective(temperature, scale)


class Relax(ControlVariate):
    """Use REBAR's control variate plus a network of the perturbed log-probabilities.

    Gradient in the logits: as in `ControlVariate`, with
    c(z) = eta f(softmax(z / lambda)) + network(z).

    Bias: none for every f that is differentiable inside the simplex.
    Value: an unbiased estimate of L.
    Cost: three evaluations of f and a double backward pass; has trainable parameters.
    Reference: Grathwohl et al. (2018), https://arxiv.org/abs/1711.00123.

    Args:
        latents: N.
        categories: K.
        hidden: Units of the network's hidden layer.
        temperature: Initial value of lambda, which is learned.
        scale: Initial value of eta, which is learned.
    """

    @validated
    def __init__(
        self, latents: Count, categories: Count, hidden: Count, temperature: Positive, scale: float
    ) -> None:
        super().__init__()
        self.control = RelaxedObjectiveAndNetwork(latents, categories, hidden, temperature, scale)
