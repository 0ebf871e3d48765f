"""The training state of one replica: its counters, its checkpoints and its divergence."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vae.evaluation import Evaluation
from vae.objective import TrainingObjective
from vae.optimizers import OptimizerConfig
from vae.tracking import Logger, LoggingConfig, ReplicaMeanWriter
from vae.training import checkpoint, monitor
from vae.training.checkpoint import Checkpoint
from vae.training.monitor import Collapse, EpochEvaluation, MonitorImages
from vae.training.stacked import StackedObjectives
from vae.utils.errors import Diverged, UserError


class TrainingResult(NamedTuple):
    """The length and the best epoch of a finished training."""

    epochs: int
    steps: int
    best_epoch: int | None  # by validation ELBO; None if no images are held out
    best_elbo: float | None  # the validation ELBO of that epoch
    seconds: float


@dataclass(frozen=True)
class TrainingRun:
    """One run to train: its objective, its optimizer, its logger and its checkpoint.

    Attributes:
        objective: The objective, with its model and estimator, on the device of the data.
        optimizer: The settings of the optimizer.
        logger: Writes the run's metrics.
        folder: The run folder, for checkpoints.
        seed: The seed of the generator that orders its training images.
        checkpoint: The checkpoint to resume from; see `vae.training.resume`.
        mean_writer: Writes the mean over the replicas that differ from this one only in the seed.
    """

    objective: TrainingObjective
    optimizer: OptimizerConfig
    logger: Logger
    folder: Path
    seed: int
    checkpoint: Checkpoint | None = None
    mean_writer: ReplicaMeanWriter | None = None


@dataclass
class Progress:
    """The counters of training, which all replicas share."""

    step: int = 0
    epoch: int = 1  # the epoch that is running
    first_step: int = 0  # the step at which that epoch began
    seconds: float = 0.0

    @property
    def completed_epochs(self) -> int:
        """The number of epochs that have ended."""
        return self.epoch - 1


class Replica:
    """The training state of one replica, which a checkpoint stores together with `Progress`.

    Attributes:
        run: What is trained, and where it is kept.
        index: The number of the replica among those that are trained together.
        diverged: Why training of the replica has ended, if its objective or ELBO is not finite.
        best_epoch: The epoch with the best validation ELBO so far.
        skipped_steps: The number of steps of the epoch that were skipped.
    """

    def __init__(
        self,
        run: TrainingRun,
        index: int,
        replicas: StackedObjectives,
        images: MonitorImages,
        on_nan: Literal["stop", "skip"],
    ) -> None:
        """Start at step 0. `load_state_dict` takes the state of a checkpoint."""
        self.run, self.index = run, index
        self.diverged: Diverged | None = None
        self.best_epoch: int | None = None
        self.skipped_steps = 0
        self._best_elbo = -math.inf
        self._model = run.objective.model
        self._replicas, self._images, self._on_nan = replicas, images, on_nan
        self._schedules = {"lr": run.optimizer.lr, **run.objective.schedules()}
        self._evaluation: EpochEvaluation | None = None  # of the last epoch
        self._result = TrainingResult(0, 0, None, None, 0.0)
        self._saved_step: int | None = None

    def epochs_since_best(self, progress: Progress) -> int:
        """Return the number of completed epochs after the best one."""
        return progress.completed_epochs - self.best_epoch if self.best_epoch else 0

    def result(self) -> TrainingResult:
        """Return the state of training when the replica was last saved."""
        return self._result

    def record_skipped_step(self, progress: Progress) -> None:
        """Count a skipped step; with `on_nan=stop`, record that the replica has diverged."""
        if self._on_nan == "skip":
            self.skipped_steps += 1
        else:
            self._diverge(progress, "the training objective")

    def check_divergence(self, progress: Progress) -> bool:
        """Return whether the epoch's training objective is not finite, and record it if so."""
        if math.isfinite(self._replicas.sums[self.index, 0]):
            return False
        self._diverge(progress, "the training objective")
        return True

    def evaluate(self, progress: Progress, logging: LoggingConfig) -> dict[str, float] | None:
        """Return everything that is logged of an epoch, or None if the replica has diverged."""
        steps = progress.step - progress.first_step - self.skipped_steps
        if not steps:
            self._diverge(progress, "every step of the epoch was skipped: the training objective")
            return None
        if self.check_divergence(progress):
            return None
        loss, distortion, rate = (self._replicas.sums[self.index] / steps).tolist()
        evaluation = monitor.evaluate_epoch(self._model, self._images)
        if not all(math.isfinite(part.elbo) for part in evaluation if part is not None):
            self._diverge(progress, "the ELBO")
            return None
        self._evaluation = evaluation
        if evaluation.valid is not None and evaluation.valid.elbo > self._best_elbo:
            self._best_elbo, self.best_epoch = evaluation.valid.elbo, progress.epoch
        gradient = {}
        if logging.gradient_every and progress.epoch % logging.gradient_every == 0:
            gradient = monitor.gradient_metrics(
                self.run.objective, self._images.train, progress.step
            )
        return (
            {"objective/loss": loss, "objective/distortion": distortion, "objective/rate": rate}
            | ({"objective/skipped": self.skipped_steps} if self._on_nan == "skip" else {})
            | evaluation.metrics()
            | monitor.add_names(self._scheduled_values(progress), "schedule/{}")
            | {"gradient/norm": self._replicas.gradient_norm(self.index)}
            | gradient
        )

    def collapse(self, progress: Progress) -> Collapse | None:
        """Return whether and how the model that was evaluated last has collapsed."""
        return monitor.find_collapse(self._codes, progress.step)

    def describe_collapse(self, collapse: Collapse) -> str:
        """Return one line about the collapse of the model that was evaluated last."""
        return monitor.describe_collapse(collapse, self._codes, self._model)

    def log_pictures(self, step: int) -> None:
        """Log pictures of the model that was evaluated last."""
        monitor.log_pictures(
            self.run.logger, step, self._model, self._images.pictures, self._codes
        )

    @property
    def _codes(self) -> Evaluation:
        if self._evaluation is None:
            raise RuntimeError("the model has not been evaluated")
        return self._evaluation.codes

    def save_checkpoint(
        self,
        which: checkpoint.Which,
        progress: Progress,
        generator_state: Tensor,
        membership: dict[str, Any],
    ) -> None:
        """Write a checkpoint.

        Args:
            which: "best", which is only evaluated later, or "last", which training resumes from.
            progress: The counters of training.
            generator_state: The state of the batches' generator when the running epoch began, or,
                after an epoch, its state now.
            membership: Which replicas are trained together, and which have stopped.

        Raises:
            OSError: The checkpoint cannot be written.
        """
        self._set_result(progress)
        content: Checkpoint = {
            "objective": self._state_dict(),
            "step": progress.step,
            "epoch": progress.completed_epochs,
            "data": self._images.digest,
        }
        if which == "last":
            counters = {
                "best": self._best_elbo,
                "best_epoch": self.best_epoch,
                "skipped": self.skipped_steps,
            }
            sums = self._replicas.sums[self.index].clone()  # a slice would be saved with its stack
            content |= {
                "optimizer": self._replicas.optimizers[self.index].state_dict(),
                "progress": asdict(progress) | counters | {"sums": sums},
                "batches": generator_state,
                **membership,
                "device": sums.device.type,
                "random": torch.get_rng_state(),
            }
            if sums.device.type == "cuda":
                content["random_cuda"] = torch.cuda.get_rng_state(sums.device)
        checkpoint.save(self.run.folder, which, content)
        if which == "last":
            self._saved_step = progress.step

    def load_state_dict(self, content: Checkpoint) -> Progress:
        """Take the state of a checkpoint, except for the random generators.

        Returns:
            The counters of training when the checkpoint was saved.

        Raises:
            UserError: The checkpoint belongs to other images, or to another model or optimizer.
        """
        file = checkpoint.path(self.run.folder, "last")
        if content["data"] != self._images.digest:
            raise UserError(f"{file} was trained on other images than this data set has")
        try:
            self.run.objective.load_state_dict(content["objective"])
            self._replicas.optimizers[self.index].load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{file} belongs to a different model or optimizer") from error
        state = dict(content["progress"])
        self._replicas.sums[self.index] = state.pop("sums").to(self._replicas.sums)
        self._best_elbo, self.best_epoch = state.pop("best"), state.pop("best_epoch")
        self.skipped_steps = state.pop("skipped")
        progress = Progress(**state)
        self._saved_step = progress.step
        self._set_result(progress)
        return progress

    def _set_result(self, progress: Progress) -> None:
        best_elbo = self._best_elbo if self.best_epoch else None
        self._result = TrainingResult(
            progress.completed_epochs,
            progress.step,
            self.best_epoch,
            best_elbo,
            progress.seconds,
        )

    def _state_dict(self) -> dict[str, Tensor]:
        """Return copies if there are replicas: a slice would be saved with the whole stack."""
        state = self.run.objective.state_dict()
        if len(self._replicas.objectives) == 1:
            return state
        return {name: tensor.clone() for name, tensor in state.items()}

    def _scheduled_values(self, progress: Progress) -> dict[str, float]:
        return {name: float(value(progress.step)) for name, value in self._schedules.items()}

    @torch.no_grad()
    def _diverge(self, progress: Progress, what: str) -> None:
        """Record that `what` is not finite, with values that help to find the reason."""
        largest = self._model.encode(self._replicas.images[self.index]).abs().max().item()
        values = [f"{name} {value:g}" for name, value in self._scheduled_values(progress).items()]
        last_good = "no checkpoint yet"
        if self._saved_step is not None:
            file = checkpoint.path(self.run.folder, "last")
            last_good = f"{file} is of step {self._saved_step}"
        self.diverged = Diverged(
            f"{what} is not finite at step {progress.step} of epoch {progress.epoch}: "
            f"{', '.join(values)}, largest logit {largest:g}; {last_good}"
        )
