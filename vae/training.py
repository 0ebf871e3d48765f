"""The loop, in sight."""

import logging
import math
import time
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from . import checkpoint, pictures
from .data import DataSet, fixed_draw, to_float, training_batches
from .evaluation import Evaluation, evaluate
from .gradients import gradient_quality, true_gradients
from .model import CategoricalVAE
from .objective import NegativeELBO, TrainingObjective
from .optimizers import Optimizer
from .tracking import Tracker, Tracking
from .validation import Count, Positive, value

log = logging.getLogger(__name__)

_GRADIENT_IMAGES, _GRADIENT_DRAWS = 100, 100


@value
class Training:
    """How long, and in which steps. Training ends at `epochs` or `steps`, whichever comes first.

    `clip` bounds the norm of the gradient. `patience` stops after that many epochs without a
    better validation ELBO. `precision` is that of the networks; sampling, softmax and KL stay
    float32.
    """

    epochs: Count
    batch_size: Count
    steps: Count | None
    clip: Positive | None
    patience: Count | None
    precision: Literal["float32", "bf16"]

    def total_steps(self, images: int) -> int:
        """The number of steps on that many training images; ValueError where no batch is full."""
        batches = images // self.batch_size
        if batches == 0:
            raise ValueError(
                f"batch_size={self.batch_size} is more than the {images} training images"
            )
        total = self.epochs * batches
        return min(total, self.steps or total)


class Diverged(Exception):
    """The training objective is no longer a number."""


class Trained(NamedTuple):
    epochs: int
    steps: int
    best_epoch: int | None  # by validation ELBO; None where no images are held out
    seconds: float


def train(
    objective: TrainingObjective,
    data: DataSet,
    optimizer: Optimizer,
    training: Training,
    tracking: Tracking,
    tracker: Tracker,
    run: Path,
    seed: int,
) -> Trained:
    """Trains the objective's model and estimator; leaves best.pt and last.pt in the run's folder.

    Randomness of the objective comes from torch's default generator, that of the batches from one
    of its own: what is evaluated or drawn in between changes neither. Raises Diverged, and what
    `check_measurable` raises.
    """
    check_measurable(objective, tracking)
    model, device = objective.model, data.train.images.device
    precision = torch.bfloat16 if training.precision == "bf16" else None
    stepper = optimizer.build(objective.parameters())
    batches = torch.Generator(device).manual_seed(seed)
    schedules = {"lr": optimizer.lr, **objective.schedules()}
    seen = fixed_draw(data, data.train)[: tracking.train_images]
    shown = pictures.gallery(data.valid if len(data.valid) else data.test, tracking.pictures)
    total_steps = training.total_steps(len(data.train))
    best, best_epoch, step, norm = -math.inf, None, 0, None
    began = time.perf_counter()

    bar = tqdm(total=total_steps, unit=" steps", disable=None, dynamic_ncols=True)
    for epoch in range(1, training.epochs + 1):
        # Train.
        epoch_began, first_step = time.perf_counter(), step
        sums = torch.zeros(3, device=device)
        model.precision = precision
        epoch_batches = training_batches(data, training.batch_size, batches)
        for x in islice(epoch_batches, total_steps - step):
            for group in stepper.param_groups:
                group["lr"] = optimizer.lr(step)
            terms = objective(x, step)
            stepper.zero_grad()
            terms.loss.mean().backward()
            if training.clip is not None:
                norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), training.clip)
            stepper.step()
            sums += torch.stack(terms).detach().mean(1)  # no .item(): it waits for the device
            step += 1
            bar.update()
        model.precision = None  # what is measured is measured in float32
        loss, distortion, rate = (sums / (step - first_step)).tolist()
        images_per_second = (
            (step - first_step) * training.batch_size / (time.perf_counter() - epoch_began)
        )
        if not math.isfinite(loss):
            raise Diverged(f"the training objective is {loss} in epoch {epoch}, by step {step}")

        # Measure and log.
        on_train = evaluate(model, seen)
        on_valid = evaluate(model, data.valid.images) if len(data.valid) else None
        codes = on_valid or on_train
        gradient = {}
        if tracking.gradient_every and epoch % tracking.gradient_every == 0:
            gradient = _gradient(objective, seen[:_GRADIENT_IMAGES], step)
        if training.clip is None:
            gradients = [p.grad for p in objective.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        tracker.scalars(
            step,
            epoch,
            {"objective/loss": loss, "objective/distortion": distortion, "objective/rate": rate}
            | _named(on_train.bound_terms(), "{}/train")
            | (_named(on_valid.bound_terms(), "{}/valid") if on_valid else {})
            | _named(codes.code_terms(), "latent/{}")
            | {f"schedule/{name}": float(schedule(step)) for name, schedule in schedules.items()}
            | {"gradient/norm": float(norm)}
            | _named(gradient, "gradient/{}"),
        )
        tracker.speed(step, images_per_second)

        # Keep.
        checkpoint.save(run, "last", objective, epoch, step)
        if on_valid and on_valid.elbo > best:
            best, best_epoch = on_valid.elbo, epoch
            checkpoint.save(run, "best", objective, epoch, step)
        waited = epoch - best_epoch if best_epoch else 0
        over = step == total_steps or waited >= (training.patience or math.inf)

        # Show.
        if tracking.pictures_every and (epoch % tracking.pictures_every == 0 or over):
            _draw(tracker, step, model, shown, codes)
        line = f"epoch {epoch}/{training.epochs}, ELBO train {on_train.elbo:.2f}"
        line += f", valid {on_valid.elbo:.2f}" if on_valid else ""
        bar.set_postfix_str(line)
        if bar.disable:  # no terminal: a line an epoch instead
            log.info("%s, %.0f images/s", line, images_per_second)
        if over:
            break
    bar.close()
    return Trained(epoch, step, best_epoch, time.perf_counter() - began)


def _named(values: dict[str, float], pattern: str) -> dict[str, float]:
    return {pattern.format(name): value for name, value in values.items()}


def check_measurable(objective: TrainingObjective, tracking: Tracking) -> None:
    """Raises ValueError where gradients are to be measured that nothing exact is known of."""
    if tracking.gradient_every and not isinstance(objective, NegativeELBO):
        raise ValueError(
            f"tracking.gradient_every={tracking.gradient_every}: gradients are measured of the "
            "ELBO's estimators alone; 0 with any other objective"
        )


def _gradient(objective: NegativeELBO, images: Tensor, step: int) -> dict[str, float]:
    model, x = objective.model, to_float(images)
    quality = gradient_quality(
        model, objective.estimator, x, true_gradients(model, x), step, _GRADIENT_DRAWS
    )
    return {"bias": quality.bias, "variance": quality.variance, "cosine": quality.cosine}


def _draw(
    tracker: Tracker, step: int, model: CategoricalVAE, shown: Tensor, codes: Evaluation
) -> None:
    tracker.picture(step, "reconstructions", pictures.reconstructions(model, shown))
    tracker.picture(step, "samples", pictures.samples(model))
    tracker.picture(step, "first_latent_swept", pictures.sweep(model, shown[:10], latent=0))
    tracker.picture(step, "code_usage", pictures.usage(codes.usage))
    tracker.histogram(step, "latent/code_usage", codes.usage * model.categories)
