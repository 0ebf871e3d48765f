"""The loop, in sight."""

import logging
import math
import time
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from tqdm import tqdm

from .data import Batches, DataSet
from .objective import NegativeELBO, TrainingObjective
from .signals import Interruption
from .step import TrainingStep
from .tracking import Tracking
from .trainee import Company, Diverged, Run, Trained, Trainee, Views, restore
from .validation import Count, Positive, value

log = logging.getLogger(__name__)

_NOISE = 0x5EED  # tells the seed of the noise from that of the batches


@value
class Training:
    """How long, and in which steps. Training ends at `epochs` or `steps`, whichever comes first.

    `clip` bounds the norm of the gradient. `patience` stops after that many epochs without a
    better validation ELBO. `precision` is that of the networks; sampling, softmax and KL stay
    float32. `on_nan` says what a step does whose loss is no number: end the run, which a device
    other than the CPU notices at the end of the epoch, or change nothing and go on, for which
    every step waits for the device. `capture` records the step as a CUDA graph where it can be: on
    a CUDA device, unless bad steps are to be skipped.
    """

    epochs: Count
    batch_size: Count
    steps: Count | None
    clip: Positive | None
    patience: Count | None
    precision: Literal["float32", "bf16"]
    on_nan: Literal["stop", "skip"] = "stop"
    capture: Literal["auto", "off"] = "auto"

    def total_steps(self, images: int) -> int:
        """The number of steps on that many training images; ValueError where no batch is full."""
        batches = images // self.batch_size
        if batches == 0:
            raise ValueError(
                f"batch_size={self.batch_size} is more than the {images} training images"
            )
        total = self.epochs * batches
        return min(total, self.steps or total)


def train(
    runs: Sequence[Run],
    data: DataSet,
    training: Training,
    tracking: Tracking,
) -> list[Trained | Diverged]:
    """Trains the model and the estimator of each run; leaves best.pt and last.pt in its folder.

    Several runs are replicas: they take the same steps at the same time, each with weights,
    batches, noise and schedules of its own (see vae.replicas). One that diverges, or runs out of
    patience, is left as it was then, and the others go on.

    Goes on where the folders' last checkpoints stand, if there are any: on the CPU a run that was
    killed and goes on equals one that was not, bit for bit. Randomness of the objectives comes
    from torch's default generator, that of the batches from one of each run's own: what is
    evaluated or drawn in between changes neither. A signal ends the step, is answered with
    checkpoints, and ends the run.

    Raises Interrupted, UserError where a checkpoint is not of this run or a step cannot be
    captured, OSError where a folder cannot be written, ValueError where the replicas are not of
    one shape, and what `check_measurable` raises.
    """
    for run in runs:
        check_measurable(run.objective, tracking)
    device = data.train.images.device
    generators = [torch.Generator(device).manual_seed(run.seed) for run in runs]
    if device.type != "cpu":  # where noise of the same seed would be the stream of the batches
        torch.manual_seed(runs[0].seed ^ _NOISE)
    batches = Batches(data, training.batch_size, generators)
    look = {"skip": "gradient", "stop": "loss" if device.type == "cpu" else None}[training.on_nan]
    take_step = TrainingStep(
        [run.objective for run in runs],
        [run.optimizer for run in runs],
        batches,
        clip=training.clip,
        precision=torch.bfloat16 if training.precision == "bf16" else None,
        look=look,
        clock="device" if device.type == "cuda" else "host",
        capture=device.type == "cuda" and training.capture == "auto" and look is None,
    )
    views = Views.of(data, tracking)
    members = [
        Trainee(run, index, take_step, views, training.on_nan) for index, run in enumerate(runs)
    ]
    patience = training.patience or math.inf
    clock = restore(members, generators)
    total_steps = training.total_steps(len(data.train))
    bar = tqdm(
        total=total_steps, initial=clock.step, unit=" steps", disable=None, dynamic_ncols=True
    )

    def going() -> list[Trainee]:
        return [m for m in members if m.diverged is None and m.waited(clock) < patience]

    def company(taking: Collection[Trainee]) -> Company:
        left = [m for m in members if m not in taking]
        why = {m.run.folder.name: None if m.diverged is None else str(m.diverged) for m in left}
        return Company([m.run.folder.name for m in members], why)

    with Interruption() as interruption:
        while clock.step < total_steps and going():
            # Train.
            began, first_step = time.perf_counter(), clock.step
            shuffled = [generator.get_state() for generator in generators]
            batches.shuffle()
            done = clock.step - clock.first_step  # more than 0 in a run that goes on
            for number in range(done if data.redraw else 0):
                batches.get(number)  # draws what was drawn
            take_step.begin(done, clock.step)
            due = min(len(batches), total_steps - clock.first_step)
            for number in range(done, due):
                left_out = take_step(number, clock.step)
                for member in going() if left_out else ():
                    if member.index in left_out:
                        member.leave_out(clock)
                clock.step += 1
                bar.update()
                if interruption.requested is not None or (left_out and not going()):
                    break
            taken = clock.step - first_step
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # what was asked of it is not yet done
            spent = time.perf_counter() - began
            clock.seconds += spent
            if interruption.requested is not None and clock.step - clock.first_step < due:
                sound = [member for member in going() if member.is_sound(clock)]
                together = company(sound)
                for member in sound:
                    member.run.tracker.flush()
                    member.keep("last", clock, shuffled[member.index], together)
                interruption.leave()

            # Measure and log.
            measuring = time.perf_counter()
            measured = {m: m.measure(clock, tracking.gradient_every) for m in going()}
            lines = {m: values for m, values in measured.items() if values is not None}
            images_per_second = taken * training.batch_size / spent
            for member, values in lines.items():
                member.run.tracker.scalars(clock.step, clock.epoch, values)
                member.run.tracker.speed(clock.step, images_per_second)
            for spread in dict.fromkeys(m.run.spread for m in lines):
                if spread is not None:
                    own = [values for m, values in lines.items() if m.run.spread is spread]
                    spread.scalars(clock.step, own)

            # Show.
            epoch = clock.epoch
            clock.epoch, clock.first_step = epoch + 1, clock.step
            take_step.sums.zero_()
            for member in lines:
                member.skipped = 0
            for member in lines if tracking.pictures_every else ():
                over = clock.step == total_steps or member.waited(clock) >= patience
                if over or epoch % tracking.pictures_every == 0:
                    member.draw(clock.step)

            # Keep: what has been shown is on the disk before a checkpoint says that it is done.
            for member in lines:
                member.run.tracker.flush()
            clock.seconds += time.perf_counter() - measuring
            together = company(lines)
            for member in lines:
                state = generators[member.index].get_state()
                if member.best_epoch == epoch:
                    member.keep("best", clock, state, together)
                member.keep("last", clock, state, together)
            if lines:
                line = f"epoch {epoch}/{training.epochs}, {_summary(list(lines.values()))}"
                bar.set_postfix_str(line)
                if bar.disable:  # no terminal: a line an epoch instead
                    log.info("%s, %.0f images/s", line, images_per_second * len(members))
            if interruption.requested is not None:
                interruption.leave()
    bar.close()
    return [member.diverged or member.trained() for member in members]


def _summary(lines: list[dict[str, float]]) -> str:
    """The ELBO, of replicas their mean."""
    means = {
        split: sum(line[f"elbo/{split}"] for line in lines) / len(lines)
        for split in ("train", "valid")
        if f"elbo/{split}" in lines[0]
    }
    return "ELBO " + ", ".join(f"{split} {mean:.2f}" for split, mean in means.items())


def check_measurable(objective: TrainingObjective, tracking: Tracking) -> None:
    """Raises ValueError where gradients are to be measured that nothing exact is known of."""
    if tracking.gradient_every and not isinstance(objective, NegativeELBO):
        raise ValueError(
            f"tracking.gradient_every={tracking.gradient_every}: gradients are measured of the "
            "ELBO's estimators alone; 0 with any other objective"
        )
