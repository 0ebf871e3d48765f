"""The logs of a run: TensorBoard, metrics.jsonl and pictures."""

from vae.tracking.logger import BANDS, Logger, LoggingConfig, ReplicaMeanWriter, tag_of
from vae.tracking.settings import write_settings

__all__ = ["BANDS", "Logger", "LoggingConfig", "ReplicaMeanWriter", "tag_of", "write_settings"]
