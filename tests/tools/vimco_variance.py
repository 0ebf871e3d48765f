"""Measure the gradient that VIMCO gives the encoder of a model, with each baseline.

    uv run python tests/tools/vimco_variance.py RUN [--untrained]

The model is that of a run folder, or with `--untrained` the one that the run began with.

The numbers are those of `vae.evaluation.gradient_quality`, here for the gradient of the negative
importance-weighted bound. They are relative to the norm of its mean, which is estimated from
independent draws with the baseline `leave_out`.
"""

import sys

import torch
from torch import Tensor, nn

from vae.config.instantiate import build
from vae.config.load import SavedRun
from vae.data import to_float
from vae.estimators import CodeFunction, Estimator
from vae.evaluation import gradient_quality
from vae.evaluation.gradients import _draws, seeded_rng
from vae.model import CategoricalVAE
from vae.objective import VIMCO
from vae.schedules import Step

IMAGES, DRAWS, CHUNKS = 20, 400, 20


class GivenLogits(nn.Module):
    """A model whose logits and log-likelihood are those that an estimator receives."""

    def __init__(self, model: CategoricalVAE, logits: Tensor, f: CodeFunction) -> None:
        super().__init__()
        self.encode = lambda x: logits
        self.log_likelihood = lambda x, z: -f(z)
        self.log_prior, self.kl = model.log_prior, model.kl


class VIMCOEstimator(Estimator):
    """VIMCO as an estimator, so that its gradient can be measured like any other."""

    def __init__(self, model: CategoricalVAE, samples: int, baseline: str) -> None:
        super().__init__()
        self._model = [model]  # in a list, so that its weights are no state of the estimator
        self._objective = VIMCO(model, samples=samples, baseline=baseline)

    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        """Return the loss of each image, (B,)."""
        self._objective.model = GivenLogits(self._model[0], logits, f)
        return self._objective(logits, step).loss


def main() -> None:
    run = SavedRun(sys.argv[1])
    torch.manual_seed(run.values["seed"])
    untrained = build(run.values, "model", CategoricalVAE)
    model = (untrained if "--untrained" in sys.argv else run.model()).requires_grad_(False)
    model.encoder.requires_grad_()
    x = to_float(run.data().test.images[:IMAGES])
    print("|   S | baseline  | bias, ± 1 standard error | deviation | cosine | signal-to-noise |")
    for samples in (5, 20, 50):
        reference = VIMCOEstimator(model, samples, "leave_out")
        with seeded_rng(x.device, 1):
            rows = [_draws(model, reference, x, 0, DRAWS // CHUNKS).mean(0) for _ in range(CHUNKS)]
        for baseline in ("geometric", "leave_out"):
            estimator = VIMCOEstimator(model, samples, baseline)
            quality = gradient_quality(model, estimator, x, torch.stack(rows), draws=DRAWS)
            print(
                f"| {samples:3} | {baseline:9} | {quality.bias:.2f} ± {quality.bias_error:.2f} "
                f"| {quality.deviation:.2f} | {quality.cosine:.3f} | {quality.snr:.3f} |"
            )


if __name__ == "__main__":
    main()
