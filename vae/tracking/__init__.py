"""The logs of a run: TensorBoard, metrics.jsonl and pictures."""

from vae.tracking.logger import Logger, LoggingConfig, ReplicaMeanWriter
from vae.tracking.settings import write_settings

__all__ = ["Logger", "LoggingConfig", "ReplicaMeanWriter", "write_settings"]
