"""The training loop: `train` runs the epochs, and `optimize` is what one step does."""

from collections.abc import Sequence

import torch

from vae.data import Batches, DataSet
from vae.schedules import Step
from vae.tracking import LoggingConfig
from vae.training.captured import CapturedStep
from vae.training.config import TrainingConfig
from vae.training.group import ReplicaGroup
from vae.training.monitor import check_measurable
from vae.training.replica import TrainingResult, TrainingRun
from vae.training.stacked import FiniteCheck, StackedObjectives
from vae.training.step import DeviceStep, EagerStep
from vae.utils.errors import Diverged
from vae.utils.signals import GracefulShutdown

_NOISE = 0x5EED  # makes the seeds of noise and batches differ


def train(
    runs: Sequence[TrainingRun], data: DataSet, training: TrainingConfig, logging: LoggingConfig
) -> list[TrainingResult | Diverged]:
    """Train the model and the estimator of each run, and leave its checkpoints in its folder.

    Several runs are replicas: they take the same steps at the same time, with separate weights,
    batches, noise and schedules (see `vae.training.stacked`). A replica that diverges
    or runs out of patience keeps its last checkpoint, and all other replicas continue.

    Runs with a checkpoint resume from it. On the CPU, a run that was killed and resumed equals an
    undisturbed run bit for bit, if both use the same number of threads. The objectives draw from
    torch's default generator, which the caller has seeded if the device is the CPU. The batches
    draw from one generator per run, and evaluation and pictures use other generators, so they do
    not change training. After a signal, the current step is completed, checkpoints are saved, and
    the run ends.

    Returns:
        For each run, the result of its training, or why it has diverged.

    Raises:
        Interrupted: A signal asked for the end.
        UserError: A checkpoint belongs to another run.
        OSError: A run folder cannot be written to.
        ValueError: The replicas differ in shape, or gradients are to be measured of an objective
            other than the ELBO.
    """
    for run in runs:
        check_measurable(run.objective, logging)
    batches = Batches(data, training.batch_size, _seeded_generators(runs, data))
    replicas = StackedObjectives(
        [run.objective for run in runs],
        [run.optimizer for run in runs],
        clip=training.clip,
        precision=torch.bfloat16 if training.precision == "bf16" else None,
    )
    take_step = _build_step(replicas, batches, training, data.train.images.device)
    group = ReplicaGroup(runs, replicas, batches, data, training, logging)
    progress = group.progress

    with GracefulShutdown() as shutdown, group.progress_bar() as bar:
        while progress.step < group.total_steps and group.active():
            for batch_index in group.start_epoch():
                skipped = take_step(batch_index, progress.step)  # runs optimize, below
                group.record_skipped(skipped)
                progress.step += 1
                bar.update()
                if shutdown.requested or (skipped and not group.active()):
                    break
            group.measure_speed()
            if shutdown.requested and not group.epoch_is_complete():
                group.save_within_epoch()
                shutdown.finish()
            metrics = group.evaluate()
            group.end_epoch()
            group.log(metrics)
            group.warn_of_collapse(metrics)
            group.save(metrics)
            group.show(bar, metrics)
            if shutdown.requested:
                shutdown.finish()
    return group.results()


def optimize(
    replicas: StackedObjectives,
    batches: Batches,
    batch_index: Step,
    step: Step,
    finite_check: FiniteCheck | None = None,
) -> list[int]:
    """Take one training step with every replica; return the indices of those that skipped it.

    A replica skips the step if `finite_check` finds that its loss or gradient is not finite. On
    CUDA, the index of the batch and the global step are tensors on the device.
    """
    replicas.set_learning_rates(step)
    images = batches.get(batch_index)  # (R, B, D)
    terms = replicas(images, step)  # loss, distortion and rate, (R, B) each
    replicas.zero_grad()
    # The mean over the batch. The argument `gradient` of backward() would import sympy.
    terms.loss.mean(1).sum().backward()
    replicas.unstack_gradients()
    replicas.clip_gradients()
    means = replicas.batch_means(terms)  # (R, 3)
    skipped = replicas.find_nonfinite(means, finite_check)
    for index, optimizer in enumerate(replicas.optimizers):
        if index not in skipped:
            optimizer.step()
    replicas.add_to_sums(means, skipped)
    return skipped


def _seeded_generators(runs: Sequence[TrainingRun], data: DataSet) -> list[torch.Generator]:
    device = data.train.images.device
    # With equal seeds, a GPU would give noise and batches the same stream. On the CPU the weights
    # are drawn first, so that the noise continues the stream at another place.
    if device.type != "cpu":
        torch.manual_seed(runs[0].seed ^ _NOISE)
    return [torch.Generator(device).manual_seed(run.seed) for run in runs]


def _build_step(
    replicas: StackedObjectives, batches: Batches, training: TrainingConfig, device: torch.device
) -> EagerStep:
    finite_check: FiniteCheck | None = None
    if training.on_nan == "skip":
        finite_check = "gradient"
    elif device.type == "cpu":  # other devices would have to be synchronised at every step
        finite_check = "loss"
    if device.type != "cuda":
        return EagerStep(optimize, replicas, batches, finite_check=finite_check)
    if training.capture == "auto" and finite_check is None:
        return CapturedStep(optimize, replicas, batches)
    return DeviceStep(optimize, replicas, batches, finite_check=finite_check)
