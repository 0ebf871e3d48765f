"""TensorBoard and metrics.jsonl: what is logged, and under which names.

    objective/{loss,distortion,rate}    mean over the epoch of the training objective; not a bound
    objective/skipped                   steps of the epoch that were skipped; with on_nan=skip only
    elbo/{train,valid}                  of the discrete model; also elbo_map/, rate/, distortion/
    latent/{perplexity,active,entropy}  of held-out images, or of training images if there are none
    schedule/{lr,beta,temperature}      at the step
    gradient/norm                       at the last step of the epoch, before clipping
    gradient/{bias,bias_error,variance,cosine}  of the estimator; see vae.evaluation.gradients

TensorBoard alone has

    elbo-test/{best,last}               of each saved model, at the end of the run
    evaluation/{elbo_map,rate,distortion,importance_weighted,log_likelihood}/test
                                        of the best model, or of the last one without a best one
    time/images_per_second              of training alone
    pictures/{reconstructions,samples,traversal,usage}
    latent/code_usage                   a histogram
    seeds/*_{low,high}                  bands over seeds: see `ReplicaMeanWriter`

TensorBoard orders charts and columns by their names, so the alphabet decides what is seen first.
elbo_map/, rate/ and distortion/ are therefore below evaluation/ there: see `tag_of`. The hyphen in
elbo-test/ puts the test ELBO first in the HParams tab, where "-" comes before "/", and below the
curves in Time Series and Scalars, where "/" comes before "-".

metrics.jsonl contains no times: two runs of the same command on the same CPU with the same number
of threads write the same bytes.
Numbers that are not finite, such as the norm of a gradient that overflows, are null there.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vae.runs.folder import METRICS
from vae.tracking.metrics import truncate
from vae.utils.files import replace_nonfinite, write_atomically
from vae.utils.validation import Count, Whole, frozen

_CUSTOM_SCALARS = {
    "bounds": {
        "ELBO": ["Multiline", ["elbo/train", "elbo/valid"]],
        "rate and distortion": [
            "Multiline",
            ["evaluation/rate/train", "evaluation/distortion/train"],
        ],
    },
    "schedules": {
        "temperature": ["Multiline", ["schedule/temperature"]],
        "beta": ["Multiline", ["schedule/beta"]],
        "learning rate": ["Multiline", ["schedule/lr"]],
    },
}
"""The charts of TensorBoard's Custom Scalars tab, which show several curves together.

A tag is a regular expression for the start of a name.
"""

BANDS = tuple(
    f"{name}/{split}" for name in ("elbo", "rate", "distortion") for split in ("train", "valid")
)
"""The names in metrics.jsonl of the numbers that have a band over seeds."""

_BELOW_ELBO = ("elbo_map", "rate", "distortion", "importance_weighted", "log_likelihood")

_RESULTS = ".results"
"""The end of the name of an event file with final numbers."""

_PROJECTOR = "projector_config.pbtxt"
_PROJECTED_FILES = ("metadata.tsv", "sprite.png", "tensors.tsv")


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


def tag_of(name: str) -> str:
    """Return the name in TensorBoard of a bound, or of any other number of metrics.jsonl.

    All bounds but the ELBO, and their terms, are in one group. TensorBoard orders groups by their
    names, and would show elbo_map and distortion before the ELBO.
    """
    return f"evaluation/{name}" if name.partition("/")[0] in _BELOW_ELBO else name


class Logger(AbstractContextManager["Logger"]):
    """Writes the metrics of one run to its folder. Use it as a context manager."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Open the files of a run that starts at `step`, and discard points logged after `step`.

        TensorBoard's default reader discards a point only if a point of the same name with an
        equal or smaller step follows. The file with the final numbers of a shorter run is
        therefore emptied. It is not removed, because a reader that has reached this file would
        then never go on to the next one.

        Raises:
            OSError: The folder cannot be written to.
        """
        self._folder = folder
        truncate(folder / METRICS, step)
        for results in folder.glob(f"events.out.tfevents.*{_RESULTS}"):
            write_atomically(results, b"")
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
            self._writer.add_scalar(tag_of(name), value, step)

    def flush(self) -> None:
        """Hand everything to the operating system, so that a killed process loses nothing."""
        self._metrics.flush()
        self._writer.flush()

    def log_speed(self, step: int, images_per_second: float) -> None:
        """Log the speed of training."""
        self._writer.add_scalar("time/images_per_second", images_per_second, step)

    def log_picture(self, step: int, name: str, image: Tensor) -> None:
        """Log a picture (1, height, width), float32 in [0, 1]."""
        self._writer.add_image(f"pictures/{name}", image, step)

    def log_histogram(self, step: int, name: str, values: Tensor) -> None:
        """Log a histogram of values of any shape."""
        self._writer.add_histogram(name, values, step)

    def log_embedding(self, step: int, codes: Tensor, labels: Tensor, images: Tensor) -> None:
        """Show codes (n, N, K) with labels (n,) and images (n, 1, H, W) in the Projector tab."""
        self._remove_embedding(step)
        self._writer.add_embedding(codes.flatten(1), labels.tolist(), images, step, "codes")

    def log_results(self, step: int, values: Mapping[str, float | None]) -> None:
        """Log the final numbers of a run, in a file that is emptied when the run is resumed.

        Numbers that could not be computed, which are None, are left out.
        """
        self._writer.flush()  # some readers of TensorBoard never return to an earlier file
        with SummaryWriter(self._folder, filename_suffix=_RESULTS) as writer:
            for name, value in values.items():
                if value is not None:
                    writer.add_scalar(tag_of(name), value, step)

    def _remove_embedding(self, step: int) -> None:
        """Remove the codes of `step` and those that the Projector tab shows, and no other files.

        The writer stores codes in a folder named after the step, so it does not replace codes of
        another step.
        """
        config = self._folder / _PROJECTOR
        shown = config.read_text(errors="replace") if config.exists() else ""
        for name in {f"{step:05d}", *re.findall(r'tensor_path: "(\d+)/codes/', shown)}:
            codes = self._folder / name / "codes"
            for file in _PROJECTED_FILES:
                (codes / file).unlink(missing_ok=True)
            with suppress(OSError):  # the folder does not exist, or the user has put files into it
                codes.rmdir()
                codes.parent.rmdir()


class ReplicaMeanWriter(AbstractContextManager["ReplicaMeanWriter"]):
    """Writes the mean over runs that differ only in their seed, as a TensorBoard run.

    The mean is logged under the same tag. For ELBO, rate and distortion, the mean minus and plus
    one standard deviation is logged too, as seeds/NAME_low and seeds/NAME_high. The Custom Scalars
    tab shows them as a band. Use the writer as a context manager.
    """

    def __init__(self, folder: Path, step: int = 0, suffix: str = "") -> None:
        """Open the files of runs that start at `step`, and discard points logged after `step`.

        Args:
            folder: Where the files are written.
            step: The step.
            suffix: The end of the name of the event file.

        Raises:
            OSError: The folder cannot be written to.
        """
        self._writer = SummaryWriter(folder, purge_step=step + 1, filename_suffix=suffix)
        margin = {
            name: ["Margin", [tag_of(name), f"seeds/{name}_low", f"seeds/{name}_high"]]
            for name in BANDS
        }
        self._writer.add_custom_scalars({"mean and standard deviation over seeds": margin})

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._writer.close()

    def log_scalars(self, step: int, lines: Sequence[Mapping[str, float]]) -> None:
        """Log the mean of the runs' values at a step, given one mapping per run."""
        for name in lines[0]:
            run_values = [line[name] for line in lines if name in line]
            values = torch.tensor(run_values, dtype=torch.float64)  # may be nan or infinite
            mean = values.mean().item()
            self._writer.add_scalar(tag_of(name), mean, step)
            if name in BANDS and len(values) > 1:
                deviation = values.std().item()
                self._writer.add_scalar(f"seeds/{name}_low", mean - deviation, step)
                self._writer.add_scalar(f"seeds/{name}_high", mean + deviation, step)
        self._writer.flush()
