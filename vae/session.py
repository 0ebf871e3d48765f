"""One sitting at a run: from a configuration to models that are trained, measured and reported.

A run that was cut short takes several.
"""

import json
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from . import configuration, door, evaluation, pictures, run_folder, run_state
from .data import fixed_draw, to_float
from .door import Experiment
from .environment import ENVIRONMENT, environment
from .files import write_json
from .machine import bf16_slowdown
from .printing import say
from .run_state import SUMMARY
from .tracking import Spread, Tracker
from .trainee import Diverged, Run, Trained
from .training import train

log = logging.getLogger(__name__)


def run(config: DictConfig, folder: Path, configs: Path, overrides: Sequence[str] = ()) -> None:
    """Builds what the configuration names, trains it in `folder` and prints the test bounds.

    Replicas are trained together, each in a folder of its own below. Where a folder holds a part
    of the same run, that is gone on with. `configs` has the options that the configuration was
    composed of, `overrides` are what was asked for; both are only noted. Call machine.prepare
    before.

    Raises UserError, what vae.training.train raises, door.Finished where there is nothing left to
    do, Diverged where a run has, after the others, and printing.Unread.
    """
    tqdm.set_lock(threading.RLock())  # a semaphore, its default, outlives a process that is killed
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(run_state.locked(folder))
        experiments = door.prepare(config, folder, stack)
        first, folders = experiments[0], [experiment.folder for experiment in experiments]
        step = max(experiment.step for experiment in experiments)
        standing = stack.enter_context(run_state.Standing(folders))
        if step:
            log.info("going on after step %d", step)
        _advise(first)
        runs = _tracked(experiments, folder, overrides, stack)
        outcomes = train(runs, first.data, first.training, first.tracking)
        rows, diverged = [], []
        for experiment, own, outcome in zip(experiments, runs, outcomes, strict=True):
            name = "" if experiment.folder == folder else f"{experiment.folder.name}: "
            if isinstance(outcome, Diverged):
                standing.says(experiment.folder, "diverged", str(outcome))
                diverged.append(f"{name}{outcome}")
                continue
            measured = _conclude(experiment, outcome, own.tracker, configs)
            rows += [{"model": name + words, **bounds} for words, bounds in measured.items()]
            standing.says(experiment.folder, "finished")
    try:
        if rows:
            _report(first, rows, folder)
    finally:
        if diverged:
            raise Diverged("; ".join(diverged))


def _advise(experiment: Experiment) -> None:
    """Says where what was chosen for speed costs it."""
    if experiment.training.precision == "bf16" and experiment.data.train.images.is_cpu:
        slowdown = bf16_slowdown()
        if slowdown > 1.5:  # a busy machine can make 1.2 of 1
            log.warning(
                "training.precision=bf16 is slower here: this processor takes %.1f times as long "
                "for a layer as in float32",
                slowdown,
            )


def _tracked(
    experiments: list[Experiment], folder: Path, overrides: Sequence[str], stack: ExitStack
) -> list[Run]:
    """The runs that the experiments are, with what logs them open until the stack is closed."""
    made_with = environment(experiments[0].data.train.images.device)
    made_with = {"overrides": list(overrides), **made_with}
    alike = Counter(experiment.setting for experiment in experiments)
    step = max(experiment.step for experiment in experiments)
    spreads = {
        setting: stack.enter_context(Spread(folder / setting, step))
        for setting, count in alike.items()
        if count > 1
    }
    runs = []
    for experiment in experiments:
        _note_environment(experiment.folder / ENVIRONMENT, made_with, experiment.step)
        tracker = stack.enter_context(Tracker(experiment.folder, experiment.step))
        if not experiment.step:
            tracker.text("config", OmegaConf.to_yaml(OmegaConf.create(experiment.config)))
        runs.append(
            Run(
                experiment.objective,
                experiment.optimizer,
                tracker,
                experiment.folder,
                experiment.settings.seed,
                spreads.get(experiment.setting),
            )
        )
    return runs


def _note_environment(file: Path, made_with: dict[str, object], step: int) -> None:
    """What a run is made with; what it went on with, and from which step, is added to that."""
    try:
        before = json.loads(file.read_bytes()) if step else {}
    except (OSError, ValueError):
        before = {}
    if before:
        went_on = [*before.get("went_on", []), {"from_step": step, **made_with}]
        made_with = before | {"went_on": went_on}
    write_json(file, made_with)


def _conclude(
    experiment: Experiment, trained: Trained, tracker: Tracker, configs: Path
) -> dict[str, dict[str, float | None]]:
    """Measures a trained model; the numbers go to TensorBoard and a file, and are returned."""
    data, settings = experiment.data, experiment.settings
    epochs = {"best": trained.best_epoch, "last": trained.epochs}
    models = {
        which: run_folder.load(experiment.folder, which).to(data.train.images.device)
        for which, epoch in epochs.items()
        if epoch
    }
    test = run_folder.of_each_step(
        experiment.folder,
        models,
        lambda which: evaluation.bounds(
            models[which], data.test.images, settings.importance_samples
        ),
    )
    last = models["last"]
    on_train = evaluation.evaluate(last, fixed_draw(data, data.train))
    final = next(iter(test.values()))  # of the best model, where there is one
    after = trained.steps + 1  # a run that goes on, or that has to say this again, drops it
    tracker.results(
        after,
        configuration.settings(OmegaConf.create(experiment.config), configs),
        {
            f"{name}/test": value
            for name, value in final.items()
            if value is not None and name not in evaluation.CODE_TERMS
        },
    )
    if experiment.tracking.projected:
        shown = data.test.images[: experiment.tracking.projected]
        tracker.codes(
            after,
            pictures.modes(last, shown),
            data.test.labels[: len(shown)],
            to_float(shown).unflatten(1, (1, *last.image_shape)),
        )
    write_json(
        experiment.folder / SUMMARY,
        {
            "data": data.name,
            "test": test,
            "train": on_train.bound_terms(),
            **trained._asdict(),
        },
    )
    return {f"{which} (epoch {epochs[which]})": bounds for which, bounds in test.items()}


def _report(experiment: Experiment, rows: list[dict[str, object]], folder: Path) -> None:
    """The test bounds, a row a model, and where everything is."""
    import pandas as pd  # here: half a second that nobody has to wait for before the first step

    from . import comparison, tables

    title = comparison.title(experiment.data, experiment.settings.importance_samples)
    if experiment.folder == folder:
        where = [f"Run folder: {folder}", f"To look at it: tensorboard --logdir {folder.parent}"]
    else:
        where = [f"Run folders: {folder}/*", f"To compare them: python evaluate.py {folder}"]
        where += [f"To look at them: tensorboard --logdir {folder}"]
    say("\n".join(["", tables.render({title: pd.DataFrame(rows)}, "table"), "", *where]))
