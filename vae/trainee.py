"""A run while it is trained: the numbers that it logs, what it shows, and what it keeps."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import checkpoint, pictures
from .data import DataSet, digest, fixed_draw, to_float
from .evaluation import Evaluation, evaluate
from .gradients import gradient_quality, true_gradients
from .objective import NegativeELBO, TrainingObjective
from .optimizers import Optimizer
from .step import TrainingStep
from .tracking import Spread, Tracker, Tracking
from .validation import UserError

log = logging.getLogger(__name__)

_GRADIENT_IMAGES, _GRADIENT_DRAWS = 100, 100


class Diverged(Exception):
    """The training objective, or the ELBO, is no longer a number."""


class Trained(NamedTuple):
    epochs: int
    steps: int
    best_epoch: int | None  # by validation ELBO; None where no images are held out
    best_elbo: float | None  # that ELBO
    seconds: float


@dataclass(frozen=True)
class Run:
    """What a run trains, how, and where it is kept."""

    objective: TrainingObjective
    optimizer: Optimizer
    tracker: Tracker
    folder: Path
    seed: int  # of the order of its images
    spread: Spread | None = None  # shared with the replicas that differ in their seed alone


@dataclass
class Clock:
    """How far training is."""

    step: int = 0
    epoch: int = 1  # the one that runs
    first_step: int = 0  # of that epoch
    seconds: float = 0.0


class Company(NamedTuple):
    """Which replicas take their steps together, by the names of their folders."""

    together: list[str]  # all that set out
    left: dict[str, str | None]  # those of them that no longer take part, and why they diverged


class Views(NamedTuple):
    """The images that models are looked at with: uint8 (n, D)."""

    digest: str  # of the whole data set
    seen: Tensor  # of training
    valid: Tensor  # may be none
    shown: Tensor

    @classmethod
    def of(cls, data: DataSet, tracking: Tracking) -> "Views":
        return cls(
            digest(data),
            fixed_draw(data, data.train)[: tracking.train_images],
            data.valid.images,
            pictures.gallery(data.valid if len(data.valid) else data.test, tracking.pictures),
        )


class Trainee:
    """One of the runs that take their steps together. With the clock: all of where it stands."""

    diverged: Diverged | None = None
    best: float = -math.inf
    best_epoch: int | None = None
    skipped: int = 0  # steps, in the epoch

    def __init__(
        self,
        run: Run,
        index: int,
        take_step: TrainingStep,
        views: Views,
        on_nan: Literal["stop", "skip"],
    ) -> None:
        self.run, self.index, self._on_nan = run, index, on_nan
        self._take_step, self._views = take_step, views
        self._model = run.objective.model
        self._schedules = {"lr": run.optimizer.lr, **run.objective.schedules()}
        self._codes: Evaluation | None = None  # of the last epoch
        self._ended = Trained(0, 0, None, None, 0.0)

    def waited(self, clock: Clock) -> int:
        """Whole epochs since the best one."""
        return clock.epoch - 1 - self.best_epoch if self.best_epoch else 0

    def trained(self) -> Trained:
        """As it stood when it was last kept."""
        return self._ended

    def leave_out(self, clock: Clock) -> None:
        """Takes note of a step that was no number and was not taken."""
        if self._on_nan == "skip":
            self.skipped += 1
        else:
            self._diverge(clock, "the training objective")

    def is_sound(self, clock: Clock) -> bool:
        """Whether the epoch's objective is a number so far. If not, it has diverged."""
        sound = math.isfinite(self._take_step.sums[self.index, 0])
        if not sound:
            self._diverge(clock, "the training objective")
        return sound

    def measure(self, clock: Clock, gradient_every: int) -> dict[str, float] | None:
        """Everything that is logged of an epoch, by name; None where it turns out diverged."""
        counted = clock.step - clock.first_step - self.skipped
        if not counted:
            self._diverge(clock, "no step of the epoch was taken: the training objective")
            return None
        if not self.is_sound(clock):
            return None
        loss, distortion, rate = (self._take_step.sums[self.index] / counted).tolist()
        on_train = evaluate(self._model, self._views.seen)
        on_valid = evaluate(self._model, self._views.valid) if len(self._views.valid) else None
        if not all(math.isfinite(each.elbo) for each in (on_train, on_valid) if each is not None):
            self._diverge(clock, "the ELBO")
            return None
        self._codes = on_valid or on_train
        if on_valid is not None and on_valid.elbo > self.best:
            self.best, self.best_epoch = on_valid.elbo, clock.epoch
        gradient = {}
        if gradient_every and clock.epoch % gradient_every == 0:
            gradient = _gradient(
                self.run.objective, self._views.seen[:_GRADIENT_IMAGES], clock.step
            )
        return (
            {"objective/loss": loss, "objective/distortion": distortion, "objective/rate": rate}
            | ({"objective/skipped": self.skipped} if self._on_nan == "skip" else {})
            | _named(on_train.bound_terms(), "{}/train")
            | (_named(on_valid.bound_terms(), "{}/valid") if on_valid else {})
            | _named(self._codes.code_terms(), "latent/{}")
            | _named(self._scheduled(clock), "schedule/{}")
            | {"gradient/norm": self._take_step.gradient_norm(self.index)}
            | _named(gradient, "gradient/{}")
        )

    def draw(self, step: int) -> None:
        """Pictures of the model as it was measured."""
        model, tracker = self._model, self.run.tracker
        shown, codes = self._views.shown, self._codes
        tracker.picture(step, "reconstructions", pictures.reconstructions(model, shown))
        tracker.picture(step, "samples", pictures.samples(model))
        tracker.picture(step, "first_latent_swept", pictures.sweep(model, shown[:10], latent=0))
        tracker.picture(step, "code_usage", pictures.usage(codes.usage))
        tracker.histogram(step, "latent/code_usage", codes.usage * model.categories)

    def keep(
        self, which: checkpoint.Which, clock: Clock, batches: Tensor, company: Company
    ) -> None:
        """Writes a checkpoint. `batches` is the state of their generator at the start of the epoch
        that runs.
        """
        self._end(clock)
        content: dict[str, Any] = {
            "objective": self._state(),
            "step": clock.step,
            "epoch": clock.epoch - 1,  # whole ones
            "data": self._views.digest,
        }
        if which == "last":  # the best one is only looked at
            own = {"best": self.best, "best_epoch": self.best_epoch, "skipped": self.skipped}
            sums = self._take_step.sums[self.index].clone()  # a slice would be saved whole
            content |= {
                "optimizer": self._take_step.steppers[self.index].state_dict(),
                "progress": asdict(clock) | own | {"sums": sums},
                "batches": batches,
                **company._asdict(),
                "device": sums.device.type,
                "random": torch.get_rng_state(),
            }
            if sums.device.type == "cuda":
                content["random_cuda"] = torch.cuda.get_rng_state(sums.device)
        checkpoint.save(self.run.folder, which, content)

    def restore(self, content: dict[str, Any]) -> Clock:
        """Takes the place where a checkpoint stands, but for what is random. Raises UserError."""
        file = checkpoint.path(self.run.folder, "last")
        if content["data"] != self._views.digest:
            raise UserError(f"{file} was trained on other images than those that are here now")
        try:
            self.run.objective.load_state_dict(content["objective"])
            self._take_step.steppers[self.index].load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{file} is of another model or optimizer") from error
        progress = dict(content["progress"])
        self._take_step.sums[self.index] = progress.pop("sums").to(self._take_step.sums)
        self.best, self.best_epoch = progress.pop("best"), progress.pop("best_epoch")
        self.skipped = progress.pop("skipped")
        clock = Clock(**progress)
        self._end(clock)
        return clock

    def _end(self, clock: Clock) -> None:
        best_elbo = self.best if self.best_epoch else None
        self._ended = Trained(
            clock.epoch - 1, clock.step, self.best_epoch, best_elbo, clock.seconds
        )

    def _state(self) -> dict[str, Tensor]:
        """A replica's tensors are slices of a stack, which would be saved whole with each."""
        return {name: held.clone() for name, held in self.run.objective.state_dict().items()}

    def _scheduled(self, clock: Clock) -> dict[str, float]:
        return {name: float(at(clock.step)) for name, at in self._schedules.items()}

    @torch.no_grad()
    def _diverge(self, clock: Clock, what: str) -> None:
        """Notes what there is to know about `what` that is no number."""
        batch = self._take_step.seen[self.index]
        largest = self._model.encode(batch).abs().max().item()
        said = [f"{name} {value:g}" for name, value in self._scheduled(clock).items()]
        folder, good = self.run.folder, "no checkpoint yet"
        if checkpoint.exists(folder, "last"):
            step = checkpoint.load(folder, "last")["step"]
            good = f"{checkpoint.path(folder, 'last')} is of step {step}"
        self.diverged = Diverged(
            f"{what} is no number at step {clock.step} of epoch {clock.epoch}: "
            f"{', '.join(said)}, largest logit {largest:g}; {good}"
        )


def restore(trainees: Sequence[Trainee], generators: Sequence[torch.Generator]) -> Clock:
    """Where the runs' checkpoints stand together; a fresh start where there are none.

    A replica that had left the others stays as it was then. Raises UserError.
    """
    steps = checkpoint.steps([trainee.run.folder for trainee in trainees])
    clock, left = Clock(), {}
    for trainee, generator, step in zip(trainees, generators, steps, strict=True):
        if not step:
            continue
        checkpoint.rewind(trainee.run.folder, step)
        content = checkpoint.load(trainee.run.folder, "last")
        own = trainee.restore(content)
        if step < max(steps):
            continue
        clock, left = own, content.get("left", {})
        if isinstance(left, list):  # a file of before 2026-11-24, which says no reasons
            left = dict.fromkeys(left, "it had left the others")
        torch.set_rng_state(content["random"])
        if content.get("device", generator.device.type) != generator.device.type:
            log.warning("another device than before: images and noise are drawn anew")
            generator.manual_seed(trainee.run.seed + own.step)
            continue
        generator.set_state(content["batches"])
        if "random_cuda" in content and generator.device.type == "cuda":
            torch.cuda.set_rng_state(content["random_cuda"], generator.device)
    for trainee in trainees:
        why = left.get(trainee.run.folder.name)
        if why is not None:
            trainee.diverged = Diverged(why)
    return clock


def _named(values: dict[str, float], pattern: str) -> dict[str, float]:
    return {pattern.format(name): value for name, value in values.items()}


def _gradient(objective: NegativeELBO, images: Tensor, step: int) -> dict[str, float]:
    model, x = objective.model, to_float(images)
    quality = gradient_quality(
        model, objective.estimator, x, true_gradients(model, x), step, _GRADIENT_DRAWS
    )
    return {
        "bias": quality.bias,
        "bias_error": quality.bias_error,
        "variance": quality.variance,
        "cosine": quality.cosine,
    }
