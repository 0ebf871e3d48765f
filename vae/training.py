"""The loop, in sight."""

import logging
import math
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from . import checkpoint, pictures
from .data import DataSet, digest, fixed_draw, to_float, training_batches
from .evaluation import Evaluation, evaluate
from .gradients import gradient_quality, true_gradients
from .model import CategoricalVAE
from .objective import NegativeELBO, TrainingObjective
from .optimizers import Optimizer
from .schedules import Schedule
from .signals import Interruption
from .tracking import Tracker, Tracking
from .validation import Count, Positive, UserError, value

log = logging.getLogger(__name__)

_GRADIENT_IMAGES, _GRADIENT_DRAWS = 100, 100


@value
class Training:
    """How long, and in which steps. Training ends at `epochs` or `steps`, whichever comes first.

    `clip` bounds the norm of the gradient. `patience` stops after that many epochs without a
    better validation ELBO. `precision` is that of the networks; sampling, softmax and KL stay
    float32. `on_nan` says what a step does whose loss is no number: end the run, which a device
    other than the CPU notices at the end of the epoch, or change nothing and go on, for which
    every step waits for the device.
    """

    epochs: Count
    batch_size: Count
    steps: Count | None
    clip: Positive | None
    patience: Count | None
    precision: Literal["float32", "bf16"]
    on_nan: Literal["stop", "skip"] = "stop"

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
    best_elbo: float | None  # that ELBO
    seconds: float


@dataclass
class Progress:
    """Where in training a run stands. With weights, moments and random states: all of it."""

    step: int = 0
    epoch: int = 1  # the one that runs
    first_step: int = 0  # of that epoch
    best: float = -math.inf
    best_epoch: int | None = None
    seconds: float = 0.0
    skipped: int = 0  # steps, in the epoch
    sums: Tensor = field(default_factory=lambda: torch.zeros(3))  # of the epoch's terms

    def waited(self) -> int:
        """Whole epochs since the best one."""
        return self.epoch - 1 - self.best_epoch if self.best_epoch else 0


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

    Goes on where the folder's last checkpoint stands, if it has one: on the CPU a run that was
    killed and goes on equals one that was not, bit for bit. Randomness of the objective comes from
    torch's default generator, that of the batches from one of its own: what is evaluated or drawn
    in between changes neither. A signal ends the step, is answered with a checkpoint, and ends
    the run.

    Raises Diverged, Interrupted, UserError where the checkpoint is not of this run, OSError where
    the folder cannot be written, and what `check_measurable` raises.
    """
    check_measurable(objective, tracking)
    model, device = objective.model, data.train.images.device
    precision = torch.bfloat16 if training.precision == "bf16" else None
    stepper = optimizer.build(objective.parameters())
    batches = torch.Generator(device).manual_seed(seed)
    kept = _Kept(run, objective, stepper, batches, digest(data))
    progress = kept.restore()
    progress.sums = progress.sums.to(device)
    schedules = {"lr": optimizer.lr, **objective.schedules()}
    seen = fixed_draw(data, data.train)[: tracking.train_images]
    shown = pictures.gallery(data.valid if len(data.valid) else data.test, tracking.pictures)
    total_steps = training.total_steps(len(data.train))
    patience = training.patience or math.inf
    look = training.on_nan == "skip" or device.type == "cpu"  # elsewhere looking means waiting
    norm = None

    bar = tqdm(
        total=total_steps, initial=progress.step, unit=" steps", disable=None, dynamic_ncols=True
    )
    with Interruption() as interruption:
        while progress.step < total_steps and progress.waited() < patience:
            # Train.
            began, first_step = time.perf_counter(), progress.step
            model.precision = precision
            shuffled = batches.get_state()
            done = progress.step - progress.first_step  # more than 0 in a run that goes on
            left = total_steps - progress.first_step
            for x in islice(training_batches(data, training.batch_size, batches), done, left):
                for group in stepper.param_groups:
                    group["lr"] = optimizer.lr(progress.step)
                terms = objective(x, progress.step)
                stepper.zero_grad()
                terms.loss.mean().backward()
                if training.clip is not None:
                    norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), training.clip)
                if look and not _finite(terms.loss, objective, training):
                    if training.on_nan == "stop":
                        raise Diverged(_why(objective, x, schedules, progress, run))
                    progress.skipped += 1
                else:
                    stepper.step()
                    progress.sums += torch.stack(terms).detach().mean(1)  # .item() would wait
                progress.step += 1
                bar.update()
                if interruption.requested is not None:
                    break
            model.precision = None  # what is measured is measured in float32
            taken = progress.step - first_step
            spent = time.perf_counter() - began
            progress.seconds += spent
            if interruption.requested is not None:
                tracker.flush()
                kept.save("last", progress, shuffled)
                interruption.leave()
            counted = progress.step - progress.first_step - progress.skipped
            loss, distortion, rate = (progress.sums / max(counted, 1)).tolist()
            if not math.isfinite(loss):
                raise Diverged(_why(objective, x, schedules, progress, run))

            # Measure and log.
            measuring = time.perf_counter()
            on_train = evaluate(model, seen)
            on_valid = evaluate(model, data.valid.images) if len(data.valid) else None
            codes = on_valid or on_train
            gradient = {}
            if tracking.gradient_every and progress.epoch % tracking.gradient_every == 0:
                gradient = _gradient(objective, seen[:_GRADIENT_IMAGES], progress.step)
            if training.clip is None:
                gradients = [p.grad for p in objective.parameters() if p.grad is not None]
                norm = torch.nn.utils.get_total_norm(gradients)
            skipped = {"objective/skipped": progress.skipped} if progress.skipped else {}
            tracker.scalars(
                progress.step,
                progress.epoch,
                {"objective/loss": loss, "objective/distortion": distortion}
                | {"objective/rate": rate}
                | skipped
                | _named(on_train.bound_terms(), "{}/train")
                | (_named(on_valid.bound_terms(), "{}/valid") if on_valid else {})
                | _named(codes.code_terms(), "latent/{}")
                | {f"schedule/{name}": float(at(progress.step)) for name, at in schedules.items()}
                | {"gradient/norm": float(norm)}
                | _named(gradient, "gradient/{}"),
            )
            images_per_second = taken * training.batch_size / spent
            tracker.speed(progress.step, images_per_second)
            improved = on_valid is not None and on_valid.elbo > progress.best
            if improved:
                progress.best, progress.best_epoch = on_valid.elbo, progress.epoch
            line = f"epoch {progress.epoch}/{training.epochs}, ELBO train {on_train.elbo:.2f}"
            line += f", valid {on_valid.elbo:.2f}" if on_valid else ""

            # Show.
            epoch = progress.epoch
            progress.epoch += 1
            progress.first_step, progress.skipped = progress.step, 0
            progress.sums.zero_()
            over = progress.step == total_steps or progress.waited() >= patience
            if tracking.pictures_every and (epoch % tracking.pictures_every == 0 or over):
                _draw(tracker, progress.step, model, shown, codes)

            # Keep: what has been shown is on the disk before a checkpoint says that it is done.
            tracker.flush()
            progress.seconds += time.perf_counter() - measuring
            if improved:
                kept.save("best", progress, batches.get_state())
            kept.save("last", progress, batches.get_state())
            bar.set_postfix_str(line)
            if bar.disable:  # no terminal: a line an epoch instead
                log.info("%s, %.0f images/s", line, images_per_second)
            if interruption.requested is not None:
                interruption.leave()
    bar.close()
    best_elbo = progress.best if progress.best_epoch else None
    return Trained(
        progress.epoch - 1, progress.step, progress.best_epoch, best_elbo, progress.seconds
    )


def _named(values: dict[str, float], pattern: str) -> dict[str, float]:
    return {pattern.format(name): value for name, value in values.items()}


class _Kept:
    """All that training depends on, to and from the checkpoints of a run's folder."""

    def __init__(
        self,
        run: Path,
        objective: TrainingObjective,
        stepper: torch.optim.Optimizer,
        batches: torch.Generator,
        data: str,
    ) -> None:
        self._run, self._data = run, data
        self._objective, self._stepper, self._batches = objective, stepper, batches

    def save(self, which: checkpoint.Which, progress: Progress, batches: Tensor) -> None:
        """`batches` is the state of their generator at the start of the epoch that runs."""
        content: dict[str, Any] = {
            "objective": self._objective.state_dict(),
            "step": progress.step,
            "epoch": progress.epoch - 1,  # whole ones
            "data": self._data,
        }
        if which == "last":  # the best one is only looked at
            content |= {
                "optimizer": self._stepper.state_dict(),
                "progress": vars(progress),
                "batches": batches,
                "random": torch.get_rng_state(),
            }
            if self._batches.device.type == "cuda":
                content["random_cuda"] = torch.cuda.get_rng_state(self._batches.device)
        checkpoint.save(self._run, which, content)

    def restore(self) -> Progress:
        """A fresh start where there is no checkpoint. Raises UserError."""
        if not checkpoint.exists(self._run, "last"):
            return Progress()
        content = checkpoint.load(self._run, "last")
        file = checkpoint.path(self._run, "last")
        if content["data"] != self._data:
            raise UserError(f"{file} was trained on other images than those that are here now")
        try:
            self._objective.load_state_dict(content["objective"])
            self._stepper.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{file} is of another model or optimizer") from error
        self._batches.set_state(content["batches"])
        torch.set_rng_state(content["random"])
        if "random_cuda" in content and self._batches.device.type == "cuda":
            torch.cuda.set_rng_state(content["random_cuda"], self._batches.device)
        return Progress(**content["progress"])


def _finite(loss: Tensor, objective: TrainingObjective, training: Training) -> bool:
    """Of the loss; where bad steps are to be skipped, of the gradient too."""
    if not math.isfinite(loss.detach().sum()):
        return False
    if training.on_nan == "stop":
        return True
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    return math.isfinite(torch.nn.utils.get_total_norm(gradients))


@torch.no_grad()
def _why(
    objective: TrainingObjective,
    x: Tensor,
    schedules: dict[str, Schedule],
    progress: Progress,
    run: Path,
) -> str:
    """What there is to know about a loss that is no number."""
    largest = objective.model.encode(x).abs().max().item()
    said = [f"{name} {float(at(progress.step)):g}" for name, at in schedules.items()]
    good = "no checkpoint yet"
    if checkpoint.exists(run, "last"):
        good = f"{checkpoint.path(run, 'last')} is of step {checkpoint.load(run, 'last')['step']}"
    return (
        f"the training objective is no number at step {progress.step} of epoch {progress.epoch}: "
        f"{', '.join(said)}, largest logit {largest:g}; {good}"
    )


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
