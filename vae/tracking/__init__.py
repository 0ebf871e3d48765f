"""The logs of a run: TensorBoard, metrics.jsonl and pictures."""

from vae.tracking.logger import Logger, LoggingConfig, ReplicaMeanWriter

__all__ = ["Logger", "LoggingConfig", "ReplicaMeanWriter"]
