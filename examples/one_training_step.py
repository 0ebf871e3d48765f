"""Train a plain PyTorch autoencoder with two gradient estimators of this project.

    python examples/one_training_step.py

`Autoencoder` stands for a model of your own. It uses neither Hydra nor the model of this project,
and encodes an image into 4 latents of 8 categories. The encoder has to learn through the sampling
of these categories. There are two ways to use an estimator for that:

1. `sample` replaces `F.gumbel_softmax(logits, hard=True)`: one-hot codes that carry a gradient.
2. `estimator(logits, f, step)` takes the loss as a function f of the code. Every estimator has
   this interface, including those that never differentiate f, such as REINFORCE.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae.estimators import Reinforce, ReinMax

LATENTS, CATEGORIES, PIXELS = 4, 8, 64  # N, K and D in the shapes below
STEPS = 100

reinmax = ReinMax(temperature=1.3)
reinforce = Reinforce(samples=4)


class Autoencoder(nn.Module):
    """A linear encoder and a linear decoder with a categorical code between them."""

    def __init__(self) -> None:
        """Create both networks with random weights."""
        super().__init__()
        self.encoder = nn.Linear(PIXELS, LATENTS * CATEGORIES)
        self.decoder = nn.Linear(LATENTS * CATEGORIES, PIXELS)

    def encode(self, images: Tensor) -> Tensor:
        """Return the logits of the codes: (B, D) -> (B, N, K)."""
        return self.encoder(images).unflatten(-1, (LATENTS, CATEGORIES))

    def loss(self, images: Tensor, codes: Tensor) -> Tensor:
        """Return -log p(image | code) in nats: (B, D) and (..., B, N, K) -> (..., B).

        If all images have the same codes, the batch axis of the codes may have size 1.
        """
        pixels = self.decoder(codes.flatten(-2))  # (..., B or 1, D), logits
        pixels, target = torch.broadcast_tensors(pixels, images)
        return F.binary_cross_entropy_with_logits(pixels, target, reduction="none").sum(-1)


def loss_with_sample(model: Autoencoder, images: Tensor, step: int) -> Tensor:
    """Return the loss of each image at one sampled code, (B,)."""
    logits = model.encode(images)  # (B, N, K)
    codes = reinmax.sample(logits, step)  # (1, B, N, K): one sample per image
    return model.loss(images, codes.squeeze(0))


def loss_with_function(model: Autoencoder, images: Tensor, step: int) -> Tensor:
    """Return an estimate of the expected loss of each image, (B,), from four sampled codes."""
    logits = model.encode(images)  # (B, N, K)
    return reinforce(logits, lambda codes: model.loss(images, codes), step)


def train(name: str, loss_of: Callable[[Autoencoder, Tensor, int], Tensor]) -> None:
    """Train a new model on noisy copies of 16 random patterns, and print its loss."""
    torch.manual_seed(0)
    patterns = torch.rand(16, PIXELS).round().repeat(16, 1)  # (B, D): 16 copies of each pattern
    images = torch.where(torch.rand_like(patterns) < 0.05, 1 - patterns, patterns)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(STEPS + 1):
        loss = loss_of(model, images, step).mean()
        if step % 25 == 0:
            print(f"{name:9}  step {step:3}  loss {loss.item():5.1f} nats per image")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    train("ReinMax", loss_with_sample)
    train("REINFORCE", loss_with_function)
