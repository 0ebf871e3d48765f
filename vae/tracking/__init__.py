"""What a run writes for people to look at: TensorBoard, metrics.jsonl and pictures."""

from vae.tracking.logger import Logger, LoggingConfig, ReplicaMeanWriter

__all__ = ["Logger", "LoggingConfig", "ReplicaMeanWriter"]
