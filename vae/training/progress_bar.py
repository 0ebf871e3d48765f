"""What the terminal shows during training."""

import logging
from types import TracebackType

from tqdm import tqdm

from vae.training.group import EpochMetrics, ReplicaGroup

log = logging.getLogger(__name__)


class ProgressBar:
    """A progress bar in a terminal; without a terminal, one line of the log per epoch."""

    def __init__(self, group: ReplicaGroup, epochs: int) -> None:
        """Take the replicas whose progress is shown, and the number of epochs."""
        self._group, self._epochs = group, epochs
        self._bar = tqdm(
            total=group.total_steps,
            initial=group.progress.step,
            unit=" steps",
            disable=None,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "ProgressBar":
        """Show the bar."""
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the bar after complete training; after an exception, leave it where it stands."""
        if exception is None:
            self._bar.close()

    def update(self) -> None:
        """Advance the bar by one step."""
        self._bar.update()

    def show(self, metrics: EpochMetrics) -> None:
        """Show the ELBO of the epoch that has just ended, as the mean over the replicas."""
        if not metrics:
            return
        lines = list(metrics.values())
        means = {
            split: sum(line[f"elbo/{split}"] for line in lines) / len(lines)
            for split in ("train", "valid")
            if f"elbo/{split}" in lines[0]
        }
        elbo = ", ".join(f"{split} {mean:.2f}" for split, mean in means.items())
        text = f"epoch {self._group.progress.epoch - 1}/{self._epochs}, ELBO {elbo}"
        self._bar.set_postfix_str(text)
        if self._bar.disable:
            speed = self._group.images_per_second * len(self._group.members)
            log.info("%s, %.0f images/s", text, speed)
