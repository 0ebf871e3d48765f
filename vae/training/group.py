"""The replicas that are trained together: resuming, evaluating, logging and saving all of them."""

import logging
import math
import time
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from vae.data import Batches, DataSet
from vae.tracking import LoggingConfig
from vae.training.config import TrainingConfig
from vae.training.monitor import Collapse, MonitorImages
from vae.training.replica import Progress, Replica, TrainingResult, TrainingRun
from vae.training.resume import remove_newer
from vae.training.stacked import StackedObjectives
from vae.utils.errors import Diverged
from vae.utils.progress import Bar, ReportedBar, progress_bar

log = logging.getLogger(__name__)

EpochMetrics = dict[Replica, dict[str, float]]
"""The values to log for an epoch, for each replica that has not diverged."""


class ReplicaGroup:
    """All replicas of a run, and the counters of their training.

    Attributes:
        progress: The counters that all replicas share.
        total_steps: The step at which training ends.
    """

    def __init__(
        self,
        runs: Sequence[TrainingRun],
        replicas: StackedObjectives,
        batches: Batches,
        data: DataSet,
        training: TrainingConfig,
        logging: LoggingConfig,
    ) -> None:
        """Create the replicas, and resume those that have a checkpoint.

        Raises:
            UserError: A checkpoint belongs to other images, another model or another optimizer.
        """
        images = MonitorImages.of(data, logging)
        self.members = [
            Replica(run, index, replicas, images, training.on_nan)
            for index, run in enumerate(runs)
        ]
        self.total_steps = training.total_steps(len(data.train))
        self._replicas, self._batches, self._redraw = replicas, batches, data.redraw
        self._training, self._logging = training, logging
        self._device = data.train.images.device
        self._patience = training.patience or math.inf
        self.progress = self._resume()
        self._shuffle_states: list[Tensor] = []
        self._epoch_began = self._evaluation_began = 0.0
        self._first_timed_step = self.progress.step
        self.images_per_second = 0.0
        self._warned_of: set[Collapse] = set()

    def active(self) -> list[Replica]:
        """Return the replicas that have neither diverged nor run out of patience."""
        return [
            member
            for member in self.members
            if member.diverged is None and member.epochs_since_best(self.progress) < self._patience
        ]

    def start_epoch(self) -> range:
        """Shuffle the images, and return the indices of the batches that are left in the epoch.

        In a run that was interrupted inside the epoch, the first batches are already done.
        """
        self._epoch_began = time.perf_counter()
        self._first_timed_step = self.progress.step
        self._shuffle_states = [generator.get_state() for generator in self._batches.generators]
        self._batches.shuffle()
        first = self.progress.step - self.progress.first_step
        for number in range(first if self._redraw else 0):
            self._batches.get(number)  # draws the same pixels as before the interruption
        return range(first, self._steps_of_epoch())

    def epoch_is_complete(self) -> bool:
        """Return whether every step of the epoch has been taken."""
        return self.progress.step - self.progress.first_step >= self._steps_of_epoch()

    def record_skipped(self, skipped: Collection[int]) -> None:
        """Record the step as skipped for the active replicas with these indices."""
        if not skipped:
            return  # active() takes time in every step
        for member in self.active():
            if member.index in skipped:
                member.record_skipped_step(self.progress)

    def measure_speed(self) -> None:
        """Compute the speed of the epoch's steps, and add their time to the progress."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # CUDA kernels run asynchronously
        seconds = time.perf_counter() - self._epoch_began
        self.progress.seconds += seconds
        steps = self.progress.step - self._first_timed_step
        self.images_per_second = steps * self._training.batch_size / seconds

    def evaluate(self) -> EpochMetrics:
        """Evaluate each active replica; those whose numbers are not finite have diverged."""
        self._evaluation_began = time.perf_counter()
        metrics = {
            member: member.evaluate(self.progress, self._logging) for member in self.active()
        }
        return {member: values for member, values in metrics.items() if values is not None}

    def end_epoch(self) -> None:
        """Count the epoch as completed, and reset what is summed within an epoch."""
        self.progress.epoch += 1
        self.progress.first_step = self.progress.step
        self._replicas.sums.zero_()
        for member in self.members:
            member.skipped_steps = 0

    def log(self, metrics: EpochMetrics) -> None:
        """Log the metrics of the epoch that has just ended and, if they are due, pictures."""
        progress = self.progress
        for member, values in metrics.items():
            member.run.logger.log_scalars(progress.step, progress.completed_epochs, values)
            member.run.logger.log_speed(progress.step, self.images_per_second)
        for writer in dict.fromkeys(member.run.mean_writer for member in metrics):
            if writer is not None:
                lines = [v for member, v in metrics.items() if member.run.mean_writer is writer]
                writer.log_scalars(progress.step, lines)
        every = self._logging.pictures_every
        for member in metrics if every else ():
            ends = (
                progress.step == self.total_steps
                or member.epochs_since_best(progress) >= self._patience
            )
            if ends or progress.completed_epochs % every == 0:
                member.log_pictures(progress.step)

    def warn_of_collapse(self, metrics: EpochMetrics) -> None:
        """Log a line if the codes of a replica do not depend on the image; each kind once."""
        collapsed: dict[Collapse, list[Replica]] = {}
        for member in metrics:
            collapse = member.collapse(self.progress)
            if collapse is not None:
                collapsed.setdefault(collapse, []).append(member)
        for collapse, members in collapsed.items():
            if collapse not in self._warned_of:
                self._warned_of.add(collapse)
                epoch = f"after epoch {self.progress.completed_epochs}"
                if len(metrics) > 1:
                    epoch += f" in {len(members)} of {len(metrics)} replicas"
                log.warning("%s, %s", epoch, members[0].describe_collapse(collapse))

    def save(self, metrics: EpochMetrics) -> None:
        """Save the last model of each replica, and the best model if the epoch was the best."""
        for member in metrics:  # before the checkpoints, so that no checkpoint is ahead of the log
            member.run.logger.flush()
        self.progress.seconds += time.perf_counter() - self._evaluation_began
        membership = self._membership(metrics)
        for member in metrics:
            state = self._batches.generators[member.index].get_state()
            if member.best_epoch == self.progress.completed_epochs:
                member.save_checkpoint("best", self.progress, state, membership)
            member.save_checkpoint("last", self.progress, state, membership)

    def save_within_epoch(self) -> None:
        """Save each active replica in the middle of an epoch, so that training resumes there."""
        finite = [member for member in self.active() if not member.check_divergence(self.progress)]
        membership = self._membership(finite)
        for member in finite:
            member.run.logger.flush()
            state = self._shuffle_states[member.index]
            member.save_checkpoint("last", self.progress, state, membership)

    def progress_bar(self) -> Bar:
        """Return a bar of steps. Without a terminal it shows nothing; see `show`."""
        return progress_bar(self.total_steps, self.progress.step)

    def show(self, bar: Bar, metrics: EpochMetrics) -> None:
        """Show the mean ELBO of the last epoch in the bar or, if none is drawn, in the log."""
        if not metrics:
            return
        means = {
            split: sum(line[f"elbo/{split}"] for line in metrics.values()) / len(metrics)
            for split in ("train", "valid")
            if all(f"elbo/{split}" in line for line in metrics.values())
        }
        epoch = f"epoch {self.progress.completed_epochs}/{self._training.epochs}"
        elbo = ", ".join(f"{split} {mean:.2f}" for split, mean in means.items())
        if isinstance(bar, ReportedBar):  # there is one line for each run of the sweep
            bar.set_postfix_str(f"{epoch}, ELBO {list(means.values())[-1]:.2f}")
        else:
            bar.set_postfix_str(f"{epoch}, ELBO {elbo}")
        if bar.disable or isinstance(bar, ReportedBar):
            images_per_second = self.images_per_second * len(self.members)
            log.info("%s, ELBO %s, %.0f images/s", epoch, elbo, images_per_second)

    def results(self) -> list[TrainingResult | Diverged]:
        """Return how each replica ended."""
        return [member.diverged or member.result() for member in self.members]

    def _steps_of_epoch(self) -> int:
        return min(len(self._batches), self.total_steps - self.progress.first_step)

    def _membership(self, active: Collection[Replica]) -> dict[str, Any]:
        """Return the names of all replicas, and why each stopped one has diverged, if it has."""
        stopped = [member for member in self.members if member not in active]
        return {
            "members": [member.run.folder.name for member in self.members],
            "stopped": {
                member.run.folder.name: str(member.diverged) if member.diverged else None
                for member in stopped
            },
        }

    def _resume(self) -> Progress:
        """Load the checkpoints of the runs, and return the progress of the newest one."""
        progress, stopped = Progress(), {}
        steps = [m.run.checkpoint["step"] if m.run.checkpoint else 0 for m in self.members]
        for member, step in zip(self.members, steps, strict=True):
            content = member.run.checkpoint
            if content is None:
                continue
            remove_newer(member.run.folder, content)
            loaded = member.load_state_dict(content)
            if step < max(steps):
                continue  # this replica had stopped earlier
            progress, stopped = loaded, content["stopped"]
            self._restore_generators(member, content)
        for member in self.members:
            reason = stopped.get(member.run.folder.name)
            if reason is not None:
                member.diverged = Diverged(reason)
        return progress

    def _restore_generators(self, member: Replica, content: dict[str, Any]) -> None:
        generator = self._batches.generators[member.index]
        torch.set_rng_state(content["random"])
        if content["device"] != generator.device.type:
            log.warning(
                "resuming on %s instead of %s: images and noise are drawn anew",
                generator.device.type,
                content["device"],
            )
            generator.manual_seed(member.run.seed + content["step"])
            return
        generator.set_state(content["batches"])
        if "random_cuda" in content and generator.device.type == "cuda":
            torch.cuda.set_rng_state(content["random_cuda"], generator.device)
