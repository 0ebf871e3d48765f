"""Trains a categorical VAE: `python train.py estimator=straight_through data=mnist_5k`.

`python train.py --help` lists what can be chosen, and every key with its default. With `-m`, the
jobs of a sweep, which Hydra's launchers run here, over the cores or on a cluster; a job answers
with the number that a search maximises, its validation ELBO.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from vae.door import Experiment
    from vae.tracking import Tracker
    from vae.trainee import Run, Trained

# No torch up here: --help and tab completion import this file.

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent / "configs"


def run(config: DictConfig, folder: Path) -> None:
    """Builds what the configuration names, trains it in `folder` and reports the test bounds.

    Replicas are trained together, each in a folder of its own below. Where a folder holds a part
    of the same run, that is gone on with. Raises Diverged where a run has, after the others.
    """
    from tqdm import tqdm

    from vae import door, run_state
    from vae.trainee import Diverged
    from vae.training import train

    tqdm.set_lock(threading.RLock())  # a semaphore, its default, outlives a process that is killed
    with ExitStack() as stack:
        experiments = door.prepare(config, folder, stack)
        first, folders = experiments[0], [experiment.folder for experiment in experiments]
        step = max(experiment.step for experiment in experiments)
        standing = stack.enter_context(run_state.Standing(folders))
        if step:
            log.info("going on after step %d", step)
        advise(first)
        runs = tracked(experiments, folder, stack)
        outcomes = train(runs, first.data, first.training, first.tracking)
        rows, diverged = [], []
        for experiment, own, outcome in zip(experiments, runs, outcomes, strict=True):
            name = "" if experiment.folder == folder else f"{experiment.folder.name}: "
            if isinstance(outcome, Diverged):
                standing.says(experiment.folder, "diverged", str(outcome))
                diverged.append(f"{name}{outcome}")
                continue
            measured = conclude(experiment, outcome, own.tracker)
            rows += [{"model": name + words, **bounds} for words, bounds in measured.items()]
            standing.says(experiment.folder, "finished")
    try:
        if rows:
            report(first, rows, folder)
    finally:
        if diverged:
            raise Diverged("; ".join(diverged))


def advise(experiment: "Experiment") -> None:
    """Says where what was chosen for speed costs it."""
    from vae.machine import bf16_slowdown

    if experiment.training.precision == "bf16" and experiment.data.train.images.is_cpu:
        slowdown = bf16_slowdown()
        if slowdown > 1.5:  # a busy machine can make 1.2 of 1
            log.warning(
                "training.precision=bf16 is slower here: this processor takes %.1f times as long "
                "for a layer as in float32",
                slowdown,
            )


def tracked(experiments: "list[Experiment]", folder: Path, stack: ExitStack) -> "list[Run]":
    """The runs that the experiments are, with what logs them open until the stack is closed."""
    from vae.environment import ENVIRONMENT, environment
    from vae.tracking import Spread, Tracker
    from vae.trainee import Run

    made_with = environment(experiments[0].data.train.images.device)
    made_with = {"overrides": list(HydraConfig.get().overrides.task), **made_with}
    alike = Counter(experiment.setting for experiment in experiments)
    step = max(experiment.step for experiment in experiments)
    spreads = {
        setting: stack.enter_context(Spread(folder / setting, step))
        for setting, count in alike.items()
        if count > 1
    }
    runs = []
    for experiment in experiments:
        note_environment(experiment.folder / ENVIRONMENT, made_with, experiment.step)
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


def note_environment(file: Path, made_with: dict[str, object], step: int) -> None:
    """What a run is made with; what it went on with, and from which step, is added to that."""
    from vae.files import write_json

    try:
        before = json.loads(file.read_bytes()) if step else {}
    except (OSError, ValueError):
        before = {}
    if before:
        went_on = [*before.get("went_on", []), {"from_step": step, **made_with}]
        made_with = before | {"went_on": went_on}
    write_json(file, made_with)


def conclude(
    experiment: "Experiment", trained: "Trained", tracker: "Tracker"
) -> dict[str, dict[str, float | None]]:
    """Measures a trained model; the numbers go to TensorBoard and a file, and are returned."""
    from vae import configuration, evaluation, pictures, run_folder
    from vae.data import fixed_draw, to_float
    from vae.files import write_json
    from vae.run_state import SUMMARY

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
        configuration.settings(OmegaConf.create(experiment.config), CONFIGS),
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


def report(experiment: "Experiment", rows: list[dict[str, object]], folder: Path) -> None:
    """The test bounds, a row a model, and where everything is."""
    import pandas as pd

    from vae import comparison, tables
    from vae.printing import say

    title = comparison.title(experiment.data, experiment.settings.importance_samples)
    if experiment.folder == folder:
        where = [f"Run folder: {folder}", f"To look at it: tensorboard --logdir {folder.parent}"]
    else:
        where = [f"Run folders: {folder}/*", f"To compare them: python evaluate.py {folder}"]
        where += [f"To look at them: tensorboard --logdir {folder}"]
    say("\n".join(["", tables.render({title: pd.DataFrame(rows)}, "table"), "", *where]))


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def job(config: DictConfig) -> float | None:
    """One run of a command line, or one job of a sweep, perhaps in a process of its own.

    Returns the run's score, or None where there is none: then it has failed.
    """
    from vae import signals, sweep

    sweeping = HydraConfig.get().mode is RunMode.MULTIRUN
    made = Path(HydraConfig.get().runtime.output_dir)
    folder = made if config.resume is None else Path(str(config.resume))
    try:
        return attempt(config, folder, sweeping)
    except (signals.Interrupted, KeyboardInterrupt) as interrupted:
        _discard(made)
        way_on = f"train.py resume={folder}" if folder.exists() else None
        if sweeping:
            way_on = f"the same command and {sweep.again(Path(HydraConfig.get().sweep.dir))}"
        sys.exit(_interrupted(interrupted, way_on))
    finally:
        _discard(made)  # Hydra made it before anything was checked


def attempt(config: DictConfig, folder: Path, sweeping: bool) -> float | None:
    """The run, and its score. What goes wrong is said in a line; it ends all but a sweep."""
    from vae import machine

    machine.prepare()
    from vae import door, run_state
    from vae.printing import Unread
    from vae.trainee import Diverged
    from vae.validation import UserError

    threading.excepthook = _complain_of_thread
    logging.raiseExceptions = False  # where nobody reads the log any more, the run goes on
    try:
        if config.resume is not None:
            config = door.resumed(folder, config, list(HydraConfig.get().overrides.task))
        with run_state.locked(folder):
            run(config, folder)
    except door.Finished as finished:
        print(finished)
    except Unread as error:  # all is in the folder
        _complain(str(error))
        if not sweeping:
            sys.exit(1)
    except (UserError, Diverged, OSError) as error:
        why = f"{folder}: {error}" if isinstance(error, OSError) else str(error)
        status = 2 if isinstance(error, UserError) else 1
        if not sweeping:
            _complain(why)
            sys.exit(status)
        log.error(why)  # the sweep goes on, and says it again at its end
        _record(status, why)
        return None
    except Exception as error:  # searches go on after it
        if sweeping:
            _record(1, f"{type(error).__name__}: {error}")
        raise
    return run_state.score(folder)


def _discard(made: Path) -> None:
    from vae import run_state  # here: a signal may come while it is imported for the first time

    run_state.discard(made)


def _record(status: int, why: str) -> None:
    """For the process that started the sweep and exits with the highest status of its jobs."""
    from vae import sweep

    config = HydraConfig.get()
    failure = sweep.Failure(status, why, list(config.overrides.task))
    sweep.record(Path(config.sweep.dir), config.job.num, failure)


def _interrupted(interrupted: BaseException, way_on: str | None) -> int:
    """Says so, and how to go on where anything was kept. The exit status."""
    from vae.signals import Interrupted

    if not isinstance(interrupted, Interrupted):
        interrupted = Interrupted(signal.SIGINT)
    kept = "before anything was kept" if way_on is None else f"go on with {way_on}"
    _complain(f"{interrupted}; {kept}")
    return interrupted.status


def _complain(message: str) -> None:
    print(f"train.py: {message}", file=sys.stderr)


def _complain_of_thread(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard writes from a thread of its own; what ends that ends the run, too, in a line."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


def _let_hydra_parse() -> None:
    """Python 3.14's argparse looks into every help text as soon as it is given one, and one of
    Hydra 1.3's is no text before it is printed: https://github.com/facebookresearch/hydra/issues/3121
    """
    if hasattr(argparse.ArgumentParser, "_check_help"):
        argparse.ArgumentParser._check_help = lambda self, action: None


def main() -> int:
    from vae import signals, sweep
    from vae.errors import is_of_groups

    _let_hydra_parse()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises, and its errors are worded here
    status = 0
    try:
        with signals.raising():
            job()
    except (HydraException, OmegaConfBaseException) as error:
        from vae.errors import one_line

        _complain(one_line(error))
        return 2
    except (ValueError, TypeError) as error:
        if str(error).startswith("No trials are completed"):
            _complain("no run of this search has a score")
            status = 1
        elif is_of_groups(error):
            groups = [word for word in sys.argv[1:] if (CONFIGS / word.partition("=")[0]).is_dir()]
            wrong = ", ".join(groups)
            _complain(f"{wrong}: a group takes the name of an option, as in estimator=reinmax")
            return 2
        elif str(error).startswith("Only one of --run"):
            _complain(str(error))
            return 2
        else:
            raise
    except RuntimeError as error:
        why = sweep.lost(error)
        if why is None:
            raise
        _complain(why)
        return 1
    except OSError as error:  # of the folder that Hydra makes for a run
        _complain(str(error))
        return 1
    except (signals.Interrupted, KeyboardInterrupt) as interrupted:
        folder = sweep.Failures.folder
        way_on = f"the same command and {sweep.again(folder)}" if folder is not None else None
        return _interrupted(interrupted, way_on)
    failures = sweep.failures()
    for number, failure in failures.items():
        _complain(f"#{number}: {failure.why}")
    return max([status, *(failure.status for failure in failures.values())])


if __name__ == "__main__":
    from vae.printing import settled

    with settled():
        sys.exit(main())
