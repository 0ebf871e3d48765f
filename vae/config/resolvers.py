"""The resolvers of this project's option files, such as `${published:lr,1e-3}`.

The processes of a launcher do not run `train.py` from the top, so `register_resolvers` is called
by everything that composes a configuration. This module imports no torch, because `--help` needs
the resolvers too.

An experiment may hold a table of the settings that each estimator was published with:

    published:
      reinmax: {optimizer: RAdam, lr: 5e-4, temperature: 1.5}
      others: {optimizer: RAdam, lr: 5e-4}
"""

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vae.utils.memory import available_memory

PUBLISHED = "published"
"""The key of the table of published settings."""

OTHERS = "others"
"""The row that is used for settings which the row of an estimator lacks."""

_BYTES_PER_JOB = 2**30

_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of Nvidia, AMD, and Windows's Linux

_LONGEST_NAME = 100  # file systems allow 255 bytes, and a sweep's run has a suffix


def register_resolvers() -> None:
    """Make the resolvers of this module known to OmegaConf. Repeated calls do no harm."""
    resolvers: list[Callable[..., object]] = [
        *(published, by, run_name, hash_suffix, or_else, parallel_jobs, temporary_folder)
    ]
    for resolver in resolvers:
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def published(key: str, default: object, *, _root_: DictConfig) -> object:
    """Return a setting that the chosen estimator was published with, or a default.

    `${published:lr,1e-3}` is the `lr` in the estimator's row of the table. If that row has no
    `lr`, it is the `lr` in the row `others` and, without that, 1e-3. This only sets the default in
    the option file; a value given on the command line or in another config overrides it.
    """
    table = _root_.get(PUBLISHED)
    if not OmegaConf.is_dict(table):  # no experiment was chosen, or it has no table
        return default
    estimator = OmegaConf.select(_root_, "estimator._target_") or ""
    rows_of_estimator = [name for name in table if is_class_of(estimator, name)]
    rows = [
        table[name] for name in (*rows_of_estimator, OTHERS) if OmegaConf.is_dict(table.get(name))
    ]
    return next((row[key] for row in rows if key in row), default)


def is_class_of(target: str, option: str) -> bool:
    """Return whether an option builds a class, as "reinmax" builds "vae.estimators.ReinMax"."""
    return target.rpartition(".")[2].lower() == option.replace("_", "")


def by(key: str, choices: DictConfig, *, _root_: DictConfig) -> object:
    """Return a setting that depends on another one: `${by:categories,{2: 240, 4: 120}}`."""
    value = OmegaConf.select(_root_, key)
    if value not in choices:
        known = ", ".join(map(str, choices))
        raise ValueError(f"{key}={value}: the experiment has settings for {known}")
    return choices[value]


def run_name(*, _root_: DictConfig) -> str:
    """Return the name of a run: "reinmax_4x8_seed0".

    It holds the estimator and any objective except the ELBO, latents x categories, and the seeds.
    The end of a name that is too long for a folder is replaced by a hash. A character that a
    folder's name should not have becomes a hyphen; such a value is refused later, by its type.
    """
    choices = _root_.hydra.runtime.choices
    methods = [choices.get("objective"), choices.get("estimator")]
    names = [name for name in methods if name and name != "negative_elbo"]
    size = f"{_root_.latents}x{_root_.categories}"
    name = "_".join([*names, size, _seeds_name(_root_.seed, _root_.seeds)])
    if len(name) > _LONGEST_NAME:
        name = name[:_LONGEST_NAME] + hash_suffix(name)
    return re.sub(r"[^\w.+-]", "-", name)


def hash_suffix(text: str) -> str:
    """Return "_" and a short hash of a text; "" for an empty one.

    The name of a sweep's run ends with the hash of those overrides that the name does not show.
    """
    return f"_{hashlib.sha256(text.encode()).hexdigest()[:6]}" if text else ""


def or_else(value: object, default: object) -> object:
    """Return the value, or the default if the value is null."""
    return default if value is None else value


def parallel_jobs(device: str, limit: int | None) -> int:
    """Return how many jobs of a sweep run at the same time, each with one thread.

    A job takes a core, or as many cores as OMP_NUM_THREADS says, and about a gigabyte of memory.
    A GPU is used by one job at a time.

    Args:
        device: The key `device` of the sweep.
        limit: The result is at most this number; None for no limit.
    """
    import joblib

    if device != "cpu" and _has_gpu():
        return 1
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    cores = joblib.cpu_count() // (int(threads) if threads.isdecimal() and int(threads) else 1)
    fitting = available_memory() // _BYTES_PER_JOB
    return max(1, min(cores, fitting, cores if limit is None else limit))


def _has_gpu() -> bool:
    """Return whether torch finds a GPU. Torch is imported only if the system has a driver."""
    if sys.platform == "linux" and not any(map(os.path.exists, _GPU_DRIVERS)):
        return False
    import torch

    return torch.cuda.is_available()


def temporary_folder() -> str:
    """Return the folder in which the runs of this user with `+debug=fast` are written."""
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""  # each user of Windows has a folder
    return str(Path(tempfile.gettempdir()) / f"categorical-vae{user}")


def _seeds_name(seed: int, seeds: int | Sequence[int] | None) -> str:
    """Return "seed0" or, for replicas, "seeds10", "seed20_seeds10" or "seeds3-7"."""
    if seeds is None:
        return f"seed{seed}"
    if isinstance(seeds, Sequence):
        return f"seeds{'-'.join(map(str, seeds))}"
    return f"seed{seed}_seeds{seeds}" if seed else f"seeds{seeds}"
