"""Training: the loop, one step of the loop, the state of the replicas, and checkpoints."""

from vae.training.config import TrainingConfig
from vae.training.loop import train
from vae.training.replica import TrainingResult, TrainingRun
from vae.utils.errors import Diverged

__all__ = ["Diverged", "TrainingConfig", "TrainingResult", "TrainingRun", "train"]
