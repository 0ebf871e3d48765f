"""The command `python train.py`: compose a configuration, train, and print each error as one line.

Exit status: 0; 2 after an error that the user can correct, such as a wrong command line; 1 after
any other error; 128 + the number of the signal that interrupted the run. A sweep has the highest
status of its jobs.

No torch is imported at the top of this file, because `--help` and tab completion import it.
"""

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vae.cli.messages import Failure, describe_hydra_error
from vae.cli.overrides import is_sweep, override, refuse_ignored_overrides
from vae.cli.progress import close_display, end_worker, interrupt_jobs
from vae.cli.sweep import (
    JobFailure,
    OutputFolder,
    command_that_resumes,
    failed_jobs_folder,
    print_comparison,
    read_failures,
    record_failure,
)
from vae.config.describe import OPTIONS
from vae.config.resolvers import register_resolvers
from vae.runs.folder import CONFIG, REPLICAS, remove_if_empty
from vae.runs.status import score
from vae.utils.commands import script_command
from vae.utils.errors import Diverged, NotFitted, UserError, first_line, is_out_of_memory
from vae.utils.signals import (
    Interrupted,
    interruptible_by_parent,
    obey_only_parent,
    signals_as_exceptions,
)
from vae.utils.stdout import OutputClosed, print_error

log = logging.getLogger(__name__)

register_resolvers()  # here: worker processes import this module and need the resolvers


def _is_joblib_worker() -> bool:
    """Return whether this process is a worker of joblib.

    This is no constant, because workers receive `job` with the values of the constants it uses.
    """
    return multiprocessing.current_process().name.startswith("LokyProcess")


# A worker process of joblib imports this module with its first job. If a signal ended the worker,
# joblib would kill all other workers before they have saved a checkpoint.
if _is_joblib_worker():
    obey_only_parent(end_worker)


def main() -> int:
    """Run the command, and return its exit status."""
    _allow_lazy_help_texts()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing its errors
    status = 0
    try:
        if is_sweep(sys.argv):
            _move_flag_to_the_front()
            refuse_ignored_overrides(sys.argv[1:], sweep=True)
        with signals_as_exceptions(interrupt_jobs):
            try:
                job()
            finally:
                close_display()
        if OutputFolder.sweep is not None:
            status = _compare_runs(OutputFolder.sweep)
    except (Interrupted, KeyboardInterrupt) as interruption:
        sweep = OutputFolder.sweep
        hint = f"; to resume: {command_that_resumes(sweep)}" if sweep else ""
        return _report_interruption(interruption, hint)
    except UserError as error:
        print_error("train.py", error)
        return 2
    except Exception as error:
        failure = describe_hydra_error(error, sys.argv[1:])
        if failure is None:
            raise
        print_error("train.py", failure.message)
        status = failure.status
    for number, job_failure in read_failures().items():
        varied = " ".join(word for word in job_failure.overrides if word not in sys.argv)
        name = f"job {number} ({varied})" if varied else f"job {number}"
        print_error("train.py", f"{name}: {job_failure.why}")
        status = max(status, job_failure.status)
    return status


@hydra.main(version_base="1.3", config_path=str(OPTIONS), config_name="train")
def job(config: DictConfig) -> float | None:
    """Train one run: the whole command, or one job of a sweep, perhaps in a worker process.

    Returns:
        The score that a search maximises; None if the run has none.
    """
    hydra_config = HydraConfig.get()
    os.chdir(hydra_config.runtime.cwd)  # paths start there, also with hydra.job.chdir=True
    sweeping = hydra_config.mode is RunMode.MULTIRUN
    created_folder = Path(hydra_config.runtime.output_dir)  # Hydra has already created it
    folder = created_folder if config.resume is None else Path(str(config.resume))
    overrides = list(hydra_config.overrides.task)
    is_worker = sweeping and OutputFolder.sweep is None
    try:
        if not sweeping:
            refuse_ignored_overrides([*hydra_config.overrides.hydra, *overrides], sweep=False)
        elif config.on_failure not in ("continue", "stop"):
            raise UserError(f"on_failure={config.on_failure}: choose continue or stop")
        elif config.on_failure == "stop" and failed_jobs_folder().exists():
            log.warning("not started, because another run of the sweep has failed")
            return None
        with interruptible_by_parent() if _is_joblib_worker() else nullcontext():
            return _train(config, folder, overrides, sweeping)
    except (Interrupted, KeyboardInterrupt) as interruption:
        if OutputFolder.sweep is not None:
            raise  # to `main`, which knows how to resume the sweep
        _remove_if_unused(created_folder)
        if _is_joblib_worker():  # joblib would go on with the next job
            end_worker(_as_interrupted(interruption).status)
        # The process that has started a worker says how to resume.
        sys.exit(_report_interruption(interruption, "" if is_worker else _how_to_resume(folder)))
    except Exception as error:
        failure = _describe_run_error(error, folder)
        if sweeping:
            status, message = failure or Failure(1, f"{type(error).__name__}: {error}")
            record_failure(JobFailure(status, message, overrides))
        if failure is None:
            raise  # in a sweep, the sweeper decides whether to continue
        if not sweeping:
            print_error("train.py", failure.message)
            sys.exit(failure.status)
        log.error(failure.message)  # the sweep continues, and repeats the message at its end
        return None
    finally:
        _remove_if_unused(created_folder)


def _compare_runs(sweep: Path) -> int:
    """Print the table of a sweep, and return the exit status."""
    try:
        print_comparison(
            sweep.relative_to(Path.cwd()) if sweep.is_relative_to(Path.cwd()) else sweep
        )
    except (UserError, OSError, OutputClosed) as error:
        print_error("train.py", error)
        return 1
    return 0


def _train(config: DictConfig, folder: Path, overrides: list[str], sweeping: bool) -> float | None:
    """Train the run that a composed configuration describes, and return its score."""
    from vae.utils.runtime import configure_process, limit_threads, without_garbage_collection

    with without_garbage_collection():
        configure_process()
        from vae.config.build import build_experiment
        from vae.config.resume import resumed_config
        from vae.experiment import NothingToDo, run_experiment
    limit_threads()

    _check_names(str(folder.absolute()), *overrides)
    threading.excepthook = _ignore_writer_errors
    logging.raiseExceptions = False  # training continues if the log cannot be printed
    if config.resume is not None:
        config = resumed_config(folder, config, overrides)
    try:
        run_experiment(build_experiment(config), folder, overrides, wait=sweeping)
    except NothingToDo as finished:
        print(finished)
    except OutputClosed as error:  # training succeeded; only printing failed
        print_error("train.py", error)
        if not sweeping:
            sys.exit(1)
    return score(folder)


def _describe_run_error(error: Exception, folder: Path) -> Failure | None:
    """Return the status and the message of an expected error, or None for any other error."""
    if is_out_of_memory(error):
        return Failure(1, f"{folder}: not enough memory: {first_line(error)}")
    match error:
        case UserError():
            return Failure(2, str(error))
        case Diverged() | NotFitted():
            return Failure(1, str(error))
        case OSError():
            return Failure(1, f"{folder}: {error}")
    return None


def _how_to_resume(folder: Path) -> str:
    """Return what follows "interrupted by SIGTERM" for a run in this folder."""
    if not any((folder / name).exists() for name in (CONFIG, REPLICAS)):
        return " before anything was saved"
    return f"; to resume: {script_command('train.py', override('resume', str(folder)))}"


def _report_interruption(interruption: BaseException, hint: str) -> int:
    """Print that the command was interrupted, followed by a hint; return the exit status."""
    interruption = _as_interrupted(interruption)
    print_error("train.py", f"{interruption}{hint}")
    return interruption.status


def _as_interrupted(interruption: BaseException) -> Interrupted:
    """Return the interruption itself, or that by SIGINT for a KeyboardInterrupt."""
    if isinstance(interruption, Interrupted):
        return interruption
    return Interrupted(signal.SIGINT)


def _move_flag_to_the_front() -> None:
    """Put -m before the overrides, because argparse cannot read it between them."""
    for flag in {"-m", "--multirun"}.intersection(sys.argv):
        sys.argv.remove(flag)
        sys.argv.insert(1, flag)


def _remove_if_unused(created_folder: Path) -> None:
    """Remove the folder that Hydra has created for a run in which nothing was saved."""
    if not OutputFolder.keeps_empty_folder:
        remove_if_empty(created_folder)


def _check_names(*words: str) -> None:
    """Raise UserError if a word has a byte that Python could not decode."""
    for word in words:
        if not any("\udc80" <= character <= "\udcff" for character in word):
            continue
        try:
            word.encode("utf-8", "surrogateescape").decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{word}: this is not UTF-8; choose another name") from error
        raise UserError(f"{word}: the locale lacks characters of the command; set PYTHONUTF8=1")


def _ignore_writer_errors(failure: threading.ExceptHookArgs) -> None:
    """Ignore OSErrors in TensorBoard's writer thread.

    The next flush in the main thread raises the same error, which is then printed as one line.
    """
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _allow_lazy_help_texts() -> None:
    """Let Hydra 1.3 build its parser on Python 3.14. Delete this when hydra-core > 1.3.2 is out.

    Hydra passes a help object; Python 3.14 expects a string:
    https://github.com/facebookresearch/hydra/issues/3121
    """
    if hasattr(argparse.ArgumentParser, "_check_help"):
        argparse.ArgumentParser._check_help = lambda self, action: None
