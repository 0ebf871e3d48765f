"""The settings of training: its length, its batches and its steps."""

from typing import Literal

from vae.utils.validation import Count, Positive, frozen


@frozen
class TrainingConfig:
    """The length of training and the settings of a step.

    Attributes:
        epochs: Training ends after this many epochs, or after `steps`, whichever comes first.
        batch_size: Images in a batch.
        steps: Training ends after this many steps; None for no limit besides `epochs`.
        clip: The largest norm of the gradient; None for no clipping.
        patience: Training ends this many epochs after the best validation ELBO; None for no such
            end.
        precision: The precision of the networks. Sampling, softmax and KL stay in float32.
        on_nan: What to do if a loss is not finite. `stop` ends the run; on devices other than the
            CPU, at the end of the epoch. `skip` skips the step, also if the gradient is not
            finite; every step waits for the device.
        capture: With `auto`, steps on a CUDA device are recorded once as a CUDA graph and then
            replayed, unless steps are to be skipped. That is faster and computes the same.
    """

    epochs: Count
    batch_size: Count
    steps: Count | None
    clip: Positive | None
    patience: Count | None
    precision: Literal["float32", "bf16"]
    on_nan: Literal["stop", "skip"]
    capture: Literal["auto", "off"]

    def steps_of_all_epochs(self, images: int) -> int:
        """Return the number of steps in `epochs` epochs on that many training images.

        Raises:
            ValueError: There are too few images for one batch.
        """
        batches = images // self.batch_size
        if batches == 0:
            raise ValueError(
                f"batch_size={self.batch_size} is more than the {images} training images"
            )
        return self.epochs * batches

    def total_steps(self, images: int) -> int:
        """Return the number of steps until the epochs or `steps` end training.

        Raises:
            ValueError: There are too few images for one batch.
        """
        total = self.steps_of_all_epochs(images)
        return min(total, self.steps or total)
