"""TensorBoard and metrics.jsonl: what is logged, and under which names.

    objective/{loss,distortion,rate}    mean over the epoch of what training minimised; no bound
    elbo/{train,valid,test}             of the discrete model; likewise elbo_map/ rate/ distortion/
    {importance_weighted,log_likelihood}/test
    latent/{perplexity,active,entropy}  of the held-out images (of training ones if none are)
    schedule/{lr,beta,temperature}      at the step
    gradient/norm                       of the epoch's last step, before clipping
    gradient/{bias,bias_error,variance,cosine}  of the estimator; see vae.gradients
    time/images_per_second              training alone; in TensorBoard only

metrics.jsonl holds no clock: two runs of the same command on the same CPU write the same bytes.
What is no number, such as the norm of a gradient that overflows, is null there.
"""

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from .files import finite, write_atomically
from .validation import Count, Whole, value

_LAYOUT = {
    "bounds": {
        "ELBO": ["Multiline", ["elbo/train", "elbo/valid"]],
        "rate and distortion": ["Multiline", ["rate/train", "distortion/train"]],
    },
    "schedules": {
        "temperature": ["Multiline", ["schedule/temperature"]],
        "beta": ["Multiline", ["schedule/beta"]],
        "learning rate": ["Multiline", ["schedule/lr"]],
    },
}
"""The custom-scalars tab: what is worth seeing on one chart."""

METRICS = "metrics.jsonl"


@value
class Tracking:
    """What is logged besides the scalars of every epoch."""

    pictures_every: Whole = Field(description="epochs between pictures; 0 for none")
    pictures: Count = Field(description="originals shown, at most")
    train_images: Count = Field(description="training images behind elbo/train, at most")
    projected: Whole = Field(description="test codes in the projector, at most; 0 for none")
    gradient_every: Whole = Field(description="epochs between measurements; 0 for none")


_SPREAD = ("elbo", "rate", "distortion")


class Spread(AbstractContextManager["Spread"]):
    """What replicas that differ in their seed alone have in common, as a run of its own.

    Each curve's mean over them, under its own name; and of the bounds the mean less and plus one
    standard deviation, which the custom-scalars tab shows as a band. A context manager.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Goes on after a step: what stands there of later ones is dropped. Raises OSError."""
        self._writer = SummaryWriter(folder, purge_step=step + 1)
        bands = [f"{name}/{split}" for name in _SPREAD for split in ("train", "valid")]
        margin = {name: ["Margin", [name, f"{name}_low", f"{name}_high"]] for name in bands}
        self._writer.add_custom_scalars({"mean and standard deviation over seeds": margin})

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def scalars(self, step: int, lines: Sequence[dict[str, float]]) -> None:
        """What each replica logs at the step."""
        for name in lines[0]:
            own = [line[name] for line in lines if name in line]
            values = torch.tensor(own, dtype=torch.float64)  # statistics refuses what is no number
            mean = values.mean().item()
            self._writer.add_scalar(name, mean, step)
            if name.partition("/")[0] in _SPREAD and len(values) > 1:
                deviation = values.std().item()
                self._writer.add_scalar(f"{name}_low", mean - deviation, step)
                self._writer.add_scalar(f"{name}_high", mean + deviation, step)
        self._writer.flush()


class Tracker(AbstractContextManager["Tracker"]):
    """Writes a run's metrics to its folder. A context manager: leaving it flushes and closes."""

    def __init__(self, run: Path, step: int = 0) -> None:
        """Goes on after a step: what stands there of later ones is dropped. Raises OSError."""
        self._run = run
        _cut(run / METRICS, step)
        self._metrics = open(run / METRICS, "a", encoding="utf-8")
        self._writer = SummaryWriter(run, purge_step=step + 1)
        self._writer.add_custom_scalars(_LAYOUT)

    def __exit__(self, *error: object) -> None:
        self._metrics.close()
        self._writer.close()

    def scalars(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, and one point of each curve."""
        line = {"step": step, "epoch": epoch, **values}
        print(json.dumps(finite(line), allow_nan=False), file=self._metrics, flush=True)
        for name, number in values.items():
            self._writer.add_scalar(name, number, step)

    def flush(self) -> None:
        """To the disk, as far as the system takes it: a killed process loses nothing of it."""
        self._metrics.flush()
        self._writer.flush()

    def speed(self, step: int, images_per_second: float) -> None:
        self._writer.add_scalar("time/images_per_second", images_per_second, step)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """(1, height, width), float32 in [0, 1]."""
        self._writer.add_image(name, image, step)

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        self._writer.add_histogram(name, values, step)

    def codes(self, step: int, codes: Tensor, labels: Tensor, images: Tensor) -> None:
        """The projector: codes (n, N, K) with their labels (n,) and images (n, 1, H, W)."""
        # Where it puts them: a run that says this again replaces them.
        shutil.rmtree(self._run / f"{step:05d}", ignore_errors=True)
        self._writer.add_embedding(codes.flatten(1), labels.tolist(), images, step, "codes")

    def text(self, name: str, text: str) -> None:
        """As it stands, in a fixed-width block."""
        self._writer.add_text(name, "\n".join("    " + line for line in text.splitlines()))

    def results(
        self, step: int, hyperparameters: dict[str, object], values: dict[str, float]
    ) -> None:
        """The final numbers, and the run's row in the HParams tab.

        Through this writer: `SummaryWriter.add_hparams` would make a second, stray run.
        """
        for summary in hparams(hyperparameters, values):
            self._writer.file_writer.add_summary(summary)
        for name, number in values.items():
            self._writer.add_scalar(name, number, step)


def _cut(metrics: Path, step: int) -> None:
    """Keeps the whole lines up to a step."""
    try:
        lines = metrics.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        write_atomically(metrics, b"".join(kept))


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that was cut off while it was written
