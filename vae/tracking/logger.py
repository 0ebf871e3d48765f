"""TensorBoard and metrics.jsonl: what is logged, and under which names.

    objective/{loss,distortion,rate}    mean over the epoch of the training objective; not a bound
    objective/skipped                   steps of the epoch that were skipped; with on_nan=skip only
    elbo/{train,valid,test}             of the discrete model; also elbo_map/, rate/, distortion/
    {importance_weighted,log_likelihood}/test
    latent/{perplexity,active,entropy}  of held-out images, or of training images if there are none
    schedule/{lr,beta,temperature}      at the step
    gradient/norm                       at the last step of the epoch, before clipping
    gradient/{bias,bias_error,variance,cosine}  of the estimator; see vae.evaluation.gradients
    time/images_per_second              of training alone; in TensorBoard only

TensorBoard also has pictures, the histogram latent/code_usage and, for replicas that differ only
in their seed, the bands *_low and *_high: see `ReplicaMeanWriter`.

metrics.jsonl contains no times: two runs of the same command on the same CPU write the same bytes.
Numbers that are not finite, such as the norm of a gradient that overflows, are null there.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from vae.runs.folder import METRICS
from vae.tracking.metrics import truncate
from vae.utils.files import replace_nonfinite
from vae.utils.validation import Count, Whole, frozen

_CUSTOM_SCALARS = {
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
"""The charts of TensorBoard's Custom Scalars tab, which show several curves together."""

_BANDS = ("elbo", "rate", "distortion")


@frozen
class LoggingConfig:
    """The settings of everything that is logged besides the numbers of every epoch.

    Attributes:
        pictures_every: Epochs between pictures; 0 for no pictures.
        pictures: At most so many originals are shown above their reconstructions.
        train_images: At most so many training images are evaluated for elbo/train.
        projected: At most so many test codes are shown in the Projector tab; 0 for none.
        gradient_every: Epochs between measurements of the gradient; 0 for none.
    """

    pictures_every: Whole
    pictures: Count
    train_images: Count
    projected: Whole
    gradient_every: Whole


class Logger(AbstractContextManager["Logger"]):
    """Writes the metrics of one run to its folder. Use it as a context manager."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Open the files of a run that starts at `step`, and discard points logged after `step`.

        Raises:
            OSError: The folder cannot be written to.
        """
        self._folder = folder
        truncate(folder / METRICS, step)
        self._metrics = open(folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115  # closed in __exit__
        self._writer = SummaryWriter(folder, purge_step=step + 1)
        self._writer.add_custom_scalars(_CUSTOM_SCALARS)

    def __exit__(self, *_: object) -> None:
        """Flush and close the files."""
        self._metrics.close()
        self._writer.close()

    def log_scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write one line of metrics.jsonl, and one point of each curve."""
        line = {"step": step, "epoch": epoch, **values}
        print(json.dumps(replace_nonfinite(line), allow_nan=False), file=self._metrics, flush=True)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Hand everything to the operating system, so that a killed process loses nothing."""
        self._metrics.flush()
        self._writer.flush()

    def log_speed(self, step: int, images_per_second: float) -> None:
        """Log the speed of training."""
        self._writer.add_scalar("time/images_per_second", images_per_second, step)

    def log_picture(self, step: int, name: str, image: Tensor) -> None:
        """Log a picture (1, height, width), float32 in [0, 1]."""
        self._writer.add_image(name, image, step)

    def log_histogram(self, step: int, name: str, values: Tensor) -> None:
        """Log a histogram of values of any shape."""
        self._writer.add_histogram(name, values, step)

    def log_embedding(self, step: int, codes: Tensor, labels: Tensor, images: Tensor) -> None:
        """Show codes (n, N, K) with labels (n,) and images (n, 1, H, W) in the Projector tab."""
        # The writer stores the codes in a folder named after the step. Replace an older folder.
        shutil.rmtree(self._folder / f"{step:05d}", ignore_errors=True)
        self._writer.add_embedding(codes.flatten(1), labels.tolist(), images, step, "codes")

    def log_text(self, name: str, text: str) -> None:
        """Show a text in a fixed-width block."""
        self._writer.add_text(name, "\n".join("    " + line for line in text.splitlines()))

    def log_results(
        self, step: int, hyperparameters: Mapping[str, object], values: Mapping[str, float]
    ) -> None:
        """Log the final numbers, and the run's row in the HParams tab.

        The row is written through this writer, because `SummaryWriter.add_hparams` would create a
        second run in another folder.
        """
        for summary in hparams(dict(hyperparameters), dict(values)):
            self._writer._get_file_writer().add_summary(summary)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


class ReplicaMeanWriter(AbstractContextManager["ReplicaMeanWriter"]):
    """Writes the mean over replicas that differ only in their seed, as a TensorBoard run.

    The mean is logged under the same tag. For ELBO, rate and distortion, the mean minus and plus
    one standard deviation is logged too, as tag_low and tag_high. The Custom Scalars tab shows
    them as a band. Use the writer as a context manager.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Open the files of replicas that start at `step`, and discard points logged after `step`.

        Raises:
            OSError: The folder cannot be written to.
        """
        self._writer = SummaryWriter(folder, purge_step=step + 1)
        bands = [f"{name}/{split}" for name in _BANDS for split in ("train", "valid")]
        margin = {name: ["Margin", [name, f"{name}_low", f"{name}_high"]] for name in bands}
        self._writer.add_custom_scalars({"mean and standard deviation over seeds": margin})

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._writer.close()

    def log_scalars(self, step: int, lines: Sequence[Mapping[str, float]]) -> None:
        """Log the mean of the replicas' values at a step, given one mapping per replica."""
        for name in lines[0]:
            replica_values = [line[name] for line in lines if name in line]
            values = torch.tensor(replica_values, dtype=torch.float64)  # may be nan or infinite
            mean = values.mean().item()
            self._writer.add_scalar(name, mean, step)
            if name.partition("/")[0] in _BANDS and len(values) > 1:
                deviation = values.std().item()
                self._writer.add_scalar(f"{name}_low", mean - deviation, step)
                self._writer.add_scalar(f"{name}_high", mean + deviation, step)
        self._writer.flush()
