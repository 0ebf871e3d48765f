"""Shared by the test modules: paths, commands, and builders of tiny data, models and runs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vae.config import compose
from vae.config.build import RunConfig, bind_schedules, build_experiment
from vae.config.instantiate import build
from vae.data import Batches, DataSet, Split
from vae.estimators import Estimator, StraightThroughGumbel
from vae.model import CategoricalVAE
from vae.networks import MLP
from vae.objective import NegativeELBO, TrainingObjective
from vae.optimizers import Adam, OptimizerConfig
from vae.schedules import Schedule
from vae.tracking import Logger, LoggingConfig
from vae.training import Diverged, TrainingConfig, TrainingResult, TrainingRun, train
from vae.training.resume import resume_points

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"

TINY = [
    "device=cpu",
    "data=mnist_5k",
    "model.networks.encoder_sizes=[16]",
    "model.networks.decoder_sizes=[16]",
    "latents=2",
    "categories=4",
    "training.epochs=2",
    "training.steps=41",
    "optimizer.lr=0.002",
    "tracking.projected=20",
    "tracking.pictures_every=1",
    "importance_samples=2",
]
"""Overrides of train.py for a run that takes a second."""

SERIAL = ["hydra/launcher=basic"]
"""Overrides for a sweep in one process, which imports torch once."""


# Commands


def start_script(
    name: str,
    *words: object,
    cwd: Path,
    threads: int | None = 1,
    env: dict[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[str]:
    """Start train.py or evaluate.py as a process.

    Args:
        name: The name of the script.
        *words: The arguments on its command line.
        cwd: The folder in which it runs.
        threads: The number of OpenMP threads; None for as many as the machine has cores.
        env: Variables that are added to the environment.
        **options: Further arguments of Popen.
    """
    chosen_elsewhere = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in chosen_elsewhere}
    environment["PYTHONPATH"] = str(ROOT)  # also for processes that the script starts
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return subprocess.Popen(
        [sys.executable, str(ROOT / name), *map(str, words)],
        cwd=cwd,
        env=environment | (env or {}),
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end of a process; return its exit status, output and errors."""
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def run_script(name: str, *words: object, cwd: Path, **options: Any) -> tuple[int, str, str]:
    """Run train.py or evaluate.py as a process; return its exit status, output and errors."""
    return finish(start_script(name, *words, cwd=cwd, **options))


def train_in(cwd: Path, *words: str) -> None:
    """Run train.py as a process, and assert that it succeeds."""
    status, _, errors = run_script("train.py", *words, cwd=cwd)
    assert status == 0, errors


def wait_until(
    condition: Callable[[], bool], seconds: float = 120, interval: float = 0.005
) -> None:
    """Wait until a condition is true, and assert that this takes no longer than some seconds.

    The condition is evaluated every `interval` seconds.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(interval)


# Files of a run folder


def written(folder: Path) -> dict[Path, int]:
    """Return when each file below a folder was written, in ns. Lock files are left out."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {file: file.stat().st_mtime_ns for file in files}


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def read_json(file: Path) -> dict:
    """Return the content of a JSON file."""
    return json.loads(file.read_text())


def read_lines(run: Path) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def resume_steps(folders: Sequence[Path]) -> list[int]:
    """Return the step from which each run resumes if the runs are trained together."""
    return [checkpoint["step"] if checkpoint else 0 for checkpoint in resume_points(folders)]


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of each point in TensorBoard, by tag. Measured times are left out."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


# Configurations


def option_names(group: str) -> list[str]:
    """Return the names of the options of a group, sorted."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def compose_config(*overrides: str) -> DictConfig:
    """Compose the configuration of train.py."""
    return deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """Compose a configuration once, because Hydra takes a quarter of a second."""
    return compose.compose_config(overrides)


def resolve_config(config: DictConfig, total_steps: int) -> dict:
    """Return the values of a configuration, with schedules as long as the run."""
    return bind_schedules(OmegaConf.to_container(config, resolve=True), total_steps)


def build_run(*overrides: str) -> RunConfig:
    """Build and check the only run of a command line of train.py."""
    (run,) = build_experiment(compose_config(*overrides)).runs
    return run


# Ten patterns of 4 x 4 pixels, which a small model learns in seconds


def pattern_split(images: int) -> Split:
    """Return images of ten patterns, one per class."""
    patterns = torch.rand(10, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    labels = torch.arange(images) % 10
    return Split(patterns[labels].to(torch.uint8) * 255, labels)


def pattern_data(valid: int = 20, redraw: bool = False) -> DataSet:
    """Return 60 training images, held-out images and 20 test images of ten patterns."""
    return DataSet(
        "patterns", pattern_split(60), pattern_split(valid), pattern_split(20), redraw, True
    )


def grey_pattern_data(redraw: bool) -> DataSet:
    """Return the same images; if they are redrawn, in greys, so that each draw differs."""
    data = pattern_data(redraw=redraw)
    if redraw:
        data.train.images.clamp_(50, 200)
    return data


def pattern_objective(
    estimator: Estimator | None = None, beta: float | Schedule = 1.0
) -> NegativeELBO:
    """Return the ELBO of a model of 3 latents with 4 categories. Its weights are always equal."""
    torch.manual_seed(2)
    networks = MLP(encoder_sizes=[16], decoder_sizes=[16], activation="relu")
    model = CategoricalVAE(networks, latents=3, categories=4, image_shape=(4, 4))
    return NegativeELBO(model, estimator or StraightThroughGumbel(temperature=0.5), beta=beta)


def adam(lr: float | Schedule = 1e-2) -> Adam:
    """Return settings of Adam without weight decay."""
    return Adam(lr=lr, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0)


class ReplicaParts(NamedTuple):
    """The objective, optimizer, folder and seed that a test chooses for a replica."""

    folder: Path
    objective: TrainingObjective
    optimizer: OptimizerConfig
    seed: int


class Trained(NamedTuple):
    """The outcome of training a replica, and the lines of its metrics.jsonl."""

    outcome: TrainingResult | Diverged
    lines: list[dict[str, float]]


_TRAINING = {
    "epochs": 3,
    "batch_size": 20,
    "steps": None,
    "clip": None,
    "patience": None,
    "precision": "float32",
    "on_nan": "stop",
    "capture": "off",
}
_LOGGING = {
    "pictures_every": 0,
    "pictures": 4,
    "train_images": 30,
    "projected": 0,
    "gradient_every": 0,
}


def train_replicas(
    replicas: Sequence[ReplicaParts], data: DataSet, **settings: Any
) -> list[Trained]:
    """Train replicas together; they resume if their folders have checkpoints.

    `settings` replace fields of the TrainingConfig and the LoggingConfig above.
    """
    changed_logging = {key: settings.pop(key) for key in _LOGGING if key in settings}
    training = TrainingConfig(**_TRAINING | settings)
    logging = LoggingConfig(**_LOGGING | changed_logging)
    torch.manual_seed(3)
    folders = [replica.folder for replica in replicas]
    with ExitStack() as stack:
        runs = []
        for replica, checkpoint in zip(replicas, resume_points(folders), strict=True):
            replica.folder.mkdir(exist_ok=True)
            step = checkpoint["step"] if checkpoint else 0
            runs.append(
                TrainingRun(
                    replica.objective,
                    replica.optimizer,
                    stack.enter_context(Logger(replica.folder, step)),
                    replica.folder,
                    replica.seed,
                    checkpoint,
                )
            )
        outcomes = train(runs, data, training, logging)
    lines = [read_lines(folder) for folder in folders]
    return [Trained(*pair) for pair in zip(outcomes, lines, strict=True)]


def train_alone(
    folder: Path,
    objective: TrainingObjective,
    data: DataSet,
    optimizer: OptimizerConfig | None = None,
    **settings: Any,
) -> Trained:
    """Train one run of seed 0. Raises Diverged if the run diverges."""
    (trained,) = train_replicas(
        [ReplicaParts(folder, objective, optimizer or adam(), 0)], data, **settings
    )
    if isinstance(trained.outcome, Diverged):
        raise trained.outcome
    return trained


def weights(objective: TrainingObjective) -> torch.Tensor:
    """Return all parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in objective.parameters()])


def without_seconds(outcome: TrainingResult | Diverged) -> object:
    """Return everything about an outcome that does not depend on the speed of the machine."""
    return str(outcome) if isinstance(outcome, Diverged) else outcome._replace(seconds=0.0)


# Models of every estimator and objective, for tests of one training step


REPLICAS = 3
LATENTS, CATEGORIES = 2, 3
MOMENTS = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
ESTIMATOR_OPTIONS = option_names("estimator")
ESTIMATOR_SETTINGS = [
    "disarm estimator.samples=3",
    "muprop estimator.samples=2 estimator.coefficient=adaptive",
    "reinforce estimator.variance_normalization=0.8",
]
"""Settings of estimators, after the name, that compute something else than the option file."""

MULTI_SAMPLE_OBJECTIVES = ["vimco", "reweighted_wake_sleep", "concrete", "importance_weighted"]


def noise_model(seed: int, prior: str = "learned") -> CategoricalVAE:
    """Return a model of 2 latents with 3 categories, with weights drawn from a seed."""
    torch.manual_seed(seed)
    networks = MLP(encoder_sizes=[6], decoder_sizes=[6], activation="tanh")
    model = CategoricalVAE(networks, LATENTS, CATEGORIES, prior=prior, image_shape=(4, 4))
    torch.nn.init.normal_(model.prior_logits)
    return model


def noise_objective(seed: int, *overrides: str) -> TrainingObjective:
    """Return the objective that overrides of train.py choose, of a float64 model from a seed."""
    config = compose_config(
        f"latents={LATENTS}", f"categories={CATEGORIES}", "training.steps=10", *overrides
    )
    values = resolve_config(config, total_steps=10)
    parts: dict[str, object] = {"model": noise_model(seed)}
    if values.get("estimator") is not None:
        if "inner_samples" in values["estimator"]:
            values["estimator"]["inner_samples"] = 2  # the default takes minutes
        parts["estimator"] = build(values, "estimator", Estimator)
    return build(values, "objective", TrainingObjective, **parts).double()


def noise_data(redraw: bool = False) -> DataSet:
    """Return 40 images of 4 x 4 random pixels, the same ones in each split."""
    pixels = torch.randint(0, 256, (40, 16), dtype=torch.uint8)
    split = Split(pixels, torch.arange(40) % 10)
    return DataSet("noise", split, split, split, redraw, redraw)


class Float64Batches(Batches):
    """Batches in the default dtype of a test.

    In float64, rounding errors that Adam would amplify stay far below every tolerance.
    """

    def get(self, number: int | torch.Tensor) -> torch.Tensor:
        """Return a batch (R, B, D)."""
        return super().get(number).to(torch.get_default_dtype())


def noise_batches(data: DataSet, seeds: Iterable[int], size: int = 5) -> Float64Batches:
    """Return shuffled batches for replicas with these seeds."""
    batches = Float64Batches(data, size, [torch.Generator().manual_seed(seed) for seed in seeds])
    batches.shuffle()
    return batches


# Estimators, as functions of logits alone


def gradient_estimates(
    estimator: Estimator, f: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor
) -> torch.Tensor:
    """Return one estimate of the gradient in the logits for each image: (B, N, K) -> (B, N, K)."""
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(estimator(leaf, f, 0).sum(), leaf)[0]
