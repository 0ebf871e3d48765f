"""The interface of a gradient estimator, and two partial implementations of it.

Notation of this package:

    z      a one-hot code (N, K), with the code z_n (K,) of latent n
    q      the distribution Cat(logits) of z; p = softmax(logits) are its probabilities
    f      the function whose expectation is differentiated
    g      the gradient of f at the code
    L      E[f(z)] with z ~ q, the quantity to estimate
    B, S   the number of images, and of samples drawn for each image
    G      standard Gumbel noise; argmax(logits + G) is an exact sample of q
    tau    a temperature
    J(p)   diag(p) - p p^T, the Jacobian of a softmax whose value is p

Each docstring states the formula of the method, and then: Bias, the difference between the
expected gradient estimate and the gradient of L; Value, what the returned number estimates; Cost,
the evaluations of f, each of which is one decoder pass in a VAE; Reference, the paper.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from vae import categorical
from vae.schedules import PositiveSchedule, Step, Value
from vae.utils.validation import Count, validated

CodeFunction = Callable[[Tensor], Tensor]
"""The function f: codes (S, B, N, K) -> values (S, B)."""


class Estimator(nn.Module, ABC):
    """Estimate L = E[f(z)] with z ~ Cat(logits), in a way that can be differentiated.

    The value of the tensor estimates L. Its backward pass estimates the gradient of L in the
    logits and in everything else that f depends on. The estimator chooses how often to evaluate f
    and at which points.

    f must treat the leading axis as samples and broadcast a batch axis of size 1: codes
    (S, 1, N, K) stand for the same codes for every image.
    """

    @validated  # also rejects unknown arguments of subclasses without a constructor
    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        """Return the estimate of L for each image.

        Args:
            logits: (B, N, K).
            f: Maps codes (S, B, N, K) to values (S, B).
            step: The global step, on which temperatures depend.

        Returns:
            Estimates (B,).
        """

    def scale_gradient(self, logits: Tensor) -> Tensor:
        """Return the logits, with a gradient that is scaled if the estimator normalises it.

        If the loss has terms besides L, compute these terms and the estimate from the result.
        Then all of them are scaled alike.

        Args:
            logits: (B, N, K), as the encoder computed them.

        Returns:
            The same values (B, N, K).
        """
        return logits

    def check(self, latents: int, categories: int) -> None:
        """Raise ValueError if the estimator cannot handle codes of this size."""


class Pathwise(Estimator):
    """Evaluate f at samples that carry a gradient, and average over the samples."""

    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        return f(self.sample(logits, step)).mean(0)

    @abstractmethod
    def sample(self, logits: Tensor, step: Step) -> Tensor:
        """Return samples (S, B, N, K) that are differentiable in the logits (B, N, K)."""


class Surrogate(Pathwise):
    """Evaluate f at exact one-hot samples of q, and differentiate a surrogate in their place.

    Args:
        temperature: A number or a schedule, greater than 0.
        samples: S, the number of codes drawn for each image.
    """

    @validated
    def __init__(self, temperature: PositiveSchedule, samples: Count = 1) -> None:
        super().__init__()
        self.temperature = temperature
        self.samples = samples

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        z = categorical.sample(logits, self.samples)  # (S, B, N, K)
        surrogate = self.surrogate(z, logits, self.temperature(step))
        return z + categorical.gradient_of(surrogate)

    @abstractmethod
    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        """Return a tensor whose gradient replaces that of the samples; its value is not used.

        Args:
            z: One-hot samples (S, B, N, K), without a gradient.
            logits: (B, N, K).
            temperature: The temperature at this step.

        Returns:
            A tensor that broadcasts to (S, B, N, K).
        """
