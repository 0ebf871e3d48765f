"""START HERE: one experiment, from its configuration to its report.

`run_experiment` shows all stages: claim the run folder, load the data, train, evaluate, report.
The method is in `vae.objective`, `vae.estimators` and `vae.model`. The training loop is in
`vae.training.loop`.
"""

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from vae.comparison.text import render_rows
from vae.config.build import ExperimentConfig, RunConfig
from vae.config.load import SavedRun, to_yaml
from vae.config.resume import holds_complete_run
from vae.data import DataSet, elbo_without_code, evaluation_images, pixel_means, to_float
from vae.evaluation import CODE_TERMS, data_title, evaluate, evaluate_bounds
from vae.runs.environment import describe_environment, record_environment
from vae.runs.folder import CONFIG, REPLICAS, SUMMARY, locked, remove_if_empty
from vae.runs.status import RunStatus, read_status
from vae.tracking import Logger, ReplicaMeanWriter, pictures, write_settings
from vae.training import Diverged, TrainingResult, TrainingRun, train
from vae.training.checkpoint import Checkpoint, Which
from vae.training.resume import resume_points
from vae.utils.commands import script_command, tensorboard_command
from vae.utils.errors import NotFitted
from vae.utils.files import write_atomically, write_json
from vae.utils.runtime import allow_open_files
from vae.utils.stdout import print_or_raise, terminal_width

log = logging.getLogger(__name__)

_OPEN_FILES = 64  # of the process itself: libraries, data and streams
_OPEN_FILES_PER_REPLICA = 3  # its lock, metrics.jsonl and TensorBoard's event file

Bounds = dict[str, float | None]
"""The test bounds of a model by name, in nats per image; None if a bound cannot be computed."""


class NothingToDo(Exception):
    """The run is finished already."""


def run_experiment(
    config: ExperimentConfig, folder: Path, overrides: Sequence[str] = (), wait: bool = False
) -> None:
    """Train what a configuration describes, in `folder`, and print the test bounds.

    Replicas are trained together, each in its folder below `folder`. If `folder` holds an
    unfinished run of the same configuration, the run is resumed. Call
    `vae.utils.runtime.configure_process` first.

    Args:
        config: The runs, built by `vae.config.build.build_experiment`.
        folder: The run folder. It is created if it does not exist.
        overrides: The overrides of the command line, which are recorded.
        wait: Wait while another process is using the folder. By default this is an error.

    Raises:
        UserError: The folder holds another run or is in use, or the data cannot be read.
        NothingToDo: The run is finished already.
        Interrupted: A signal asked for the end. The run can be resumed.
        Diverged: A run has diverged. It is raised after the other runs are finished and reported.
        NotFitted: With `overfit`, a model has not fitted the batch.
        OutputClosed: The results could not be printed. They are in the folder.
        OSError: The folder cannot be written to.
    """
    tqdm.set_lock(threading.RLock())  # the default is a semaphore, which outlives a killed process
    folder.mkdir(parents=True, exist_ok=True)
    runs, first = config.runs, config.runs[0]  # replicas share data, training and logging
    folders = [folder / run.name for run in runs]
    with ExitStack() as stack:
        stack.enter_context(locked(folder, wait))
        _check_folders(config, folder, folders)
        data = first.source.load(first.device)
        if config.has_replicas:
            _create_and_lock(folders, wait, stack)
        checkpoints = resume_points(folders)
        # The status "running" is written before config.yaml: a finished run that is being extended
        # must not look finished if the process is killed in between.
        status = stack.enter_context(RunStatus(folders))
        _write_configs(config, folder, folders)
        for run in runs:
            run.objective.to(run.device)
        _give_data_mean(runs, checkpoints, data)
        training_runs = _start_logging(config, folder, checkpoints, overrides, stack)
        outcomes = train(training_runs, data, first.training, first.logging)
        rows: list[dict[str, object]] = []
        diverged: list[str] = []
        for run, training_run, outcome in zip(runs, training_runs, outcomes, strict=True):
            prefix = f"{run.name}: " if run.name else ""
            if isinstance(outcome, Diverged):
                status.set(training_run.folder, "diverged", str(outcome))
                diverged.append(f"{prefix}{outcome}")
                continue
            bounds = _evaluate_and_log(run, training_run, outcome, data)
            rows += [{"model": prefix + model, **numbers} for model, numbers in bounds.items()]
            status.set(training_run.folder, "finished")
    try:
        if rows:
            _print_report(first, data, rows, folder)
    finally:
        if diverged:
            raise Diverged("; ".join(diverged))
    if first.top_level.overfit:
        _check_fit(rows, elbo_without_code(data.test.images))


def _check_fit(rows: list[dict[str, object]], elbo: float) -> None:
    """Print that every model fits the batch, or raise NotFitted."""
    poor = [row for row in rows if not isinstance(row["elbo"], float) or row["elbo"] <= elbo]
    limit = f"{elbo:.2f}, the best ELBO of a model without a code"
    if poor:
        raise NotFitted(
            f"{poor[0]['model']} does not fit the batch: its ELBO is not above {limit}"
        )
    print_or_raise(f"\nThe model fits the batch: its ELBO is above {limit}.")


def _check_folders(config: ExperimentConfig, folder: Path, folders: Sequence[Path]) -> None:
    """Raise UserError if a folder holds another run, and NothingToDo if all runs are finished."""
    if config.shared_values is not None:
        holds_complete_run(folder, REPLICAS, config.shared_values, config.runs[0].total_steps)
    is_finished = [
        holds_complete_run(run_folder, CONFIG, run.values, run.total_steps)
        and read_status(run_folder) == "finished"
        for run_folder, run in zip(folders, config.runs, strict=True)
    ]
    if all(is_finished):
        run = config.runs[0]
        hint = ""
        if run.stops_before_last_epoch:
            hint = f"; raise training.steps={run.training.steps} to train longer"
        raise NothingToDo(f"{folder} is finished: nothing to do{hint}")


def _create_and_lock(folders: Sequence[Path], wait: bool, stack: ExitStack) -> None:
    """Create and lock the folders of replicas; closing the stack removes those that stay empty."""
    allow_open_files(_OPEN_FILES + _OPEN_FILES_PER_REPLICA * len(folders))
    for folder in folders:
        if not folder.exists():
            folder.mkdir()
            stack.callback(remove_if_empty, folder)
        stack.enter_context(locked(folder, wait))


def _write_configs(config: ExperimentConfig, folder: Path, folders: Sequence[Path]) -> None:
    if config.shared_values is not None:
        write_atomically(folder / REPLICAS, to_yaml(config.shared_values).encode())
    for run, run_folder in zip(config.runs, folders, strict=True):
        write_atomically(run_folder / CONFIG, to_yaml(run.values).encode())


def _give_data_mean(
    runs: Sequence[RunConfig], checkpoints: Sequence[Checkpoint | None], data: DataSet
) -> None:
    """Give the mean of the training images to each new model that uses it."""
    models = [
        run.objective.model
        for run, checkpoint in zip(runs, checkpoints, strict=True)
        if checkpoint is None and run.objective.model.uses_data_mean
    ]
    if models:
        mean = pixel_means(data.train.images)
        for model in models:
            model.set_data_mean(mean)


def _start_logging(
    config: ExperimentConfig,
    folder: Path,
    checkpoints: Sequence[Checkpoint | None],
    overrides: Sequence[str],
    stack: ExitStack,
) -> list[TrainingRun]:
    """Open loggers, which closing the stack closes, and record the environment of the runs."""
    made_with = {"overrides": list(overrides), **describe_environment(config.runs[0].device)}
    steps = [checkpoint["step"] if checkpoint else 0 for checkpoint in checkpoints]
    if max(steps):
        log.info("resuming after step %d", max(steps))
    mean_writers = {
        name: stack.enter_context(ReplicaMeanWriter(folder / name, max(steps)))
        for name, count in Counter(run.name_without_seed for run in config.runs).items()
        if count > 1
    }
    training_runs = []
    for run, checkpoint, step in zip(config.runs, checkpoints, steps, strict=True):
        run_folder = folder / run.name
        record_environment(run_folder, made_with, step)
        write_settings(run_folder, to_yaml(run.values), run.describe())
        logger = stack.enter_context(Logger(run_folder, step))
        training_runs.append(
            TrainingRun(
                objective=run.objective,
                optimizer=run.optimizer,
                logger=logger,
                folder=run_folder,
                seed=run.top_level.seed,
                checkpoint=checkpoint,
                mean_writer=mean_writers.get(run.name_without_seed),
            )
        )
    return training_runs


def _evaluate_and_log(
    run: RunConfig, training_run: TrainingRun, result: TrainingResult, data: DataSet
) -> dict[str, Bounds]:
    """Evaluate the best and the last model of a trained run, and log and save the numbers.

    Returns:
        The test bounds of each model, by a name such as "best (epoch 7)".
    """
    saved = SavedRun(training_run.folder)
    epochs = {"best": result.best_epoch, "last": result.epochs}
    models = {
        which: saved.model(which).to(run.device) for which in saved.saved_models() if epochs[which]
    }

    def evaluate_test(which: Which) -> Bounds:
        return evaluate_bounds(models[which], data.test.images, run.top_level.importance_samples)

    test = saved.measure_models(models, evaluate_test)
    on_train = evaluate(models["last"], evaluation_images(data, data.train))
    reported = next(iter(test.values()))  # the best model comes first, if there is one
    # One step after the last, so that TensorBoard drops these points if the run is resumed or
    # evaluated again.
    step = result.steps + 1
    results = {f"elbo-test/{which}": bounds["elbo"] for which, bounds in test.items()}
    results |= {
        f"{name}/test": value
        for name, value in reported.items()
        if name not in ("elbo", *CODE_TERMS)
    }
    training_run.logger.log_results(step, results)
    if run.logging.projected:
        images = data.test.images[: run.logging.projected]
        training_run.logger.log_embedding(
            step,
            pictures.modes(models["last"], images),
            data.test.labels[: len(images)],
            to_float(images).unflatten(1, (1, *models["last"].image_shape)),
        )
    title = data_title(data, run.top_level.importance_samples)
    summary = {"data": data.name, "title": title, "test": test, "train": on_train.bound_terms()}
    write_json(training_run.folder / SUMMARY, summary | result._asdict())
    return {f"{which} (epoch {epochs[which]})": bounds for which, bounds in test.items()}


def _print_report(
    run: RunConfig, data: DataSet, rows: list[dict[str, object]], folder: Path
) -> None:
    """Print the test bounds, one row per model, and the paths of the run folders."""
    title = data_title(data, run.top_level.importance_samples)
    if run.name:
        hints = [f"Run folders: {folder}/*"]
        hints += [f"To compare them: {script_command('evaluate.py', folder)}"]
        hints += [f"To look at them: {tensorboard_command(folder)}"]
    else:
        hints = [f"Run folder: {folder}"]
        hints += [f"To look at it: {tensorboard_command(folder.parent)}"]
    hint = f"{SUMMARY} has all numbers."
    table = render_rows(title, rows, "model", terminal_width(), hint)
    print_or_raise("\n".join(["", table, "", *hints]))
