"""Trains a categorical VAE: `python train.py estimator=straight_through data=mnist_5k`.

`python train.py --help` lists what can be chosen, and every key with its default. With `-m`, the
jobs of a sweep, which Hydra's launchers run here, over the cores or on a cluster; a job answers
with the number that a search maximises, its validation ELBO.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

# No torch up here: --help and tab completion import this file.

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent / "configs"


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
    from vae import door, run_state, session
    from vae.printing import Unread
    from vae.trainee import Diverged
    from vae.validation import UserError

    threading.excepthook = _complain_of_thread
    logging.raiseExceptions = False  # where nobody reads the log any more, the run goes on
    overrides = list(HydraConfig.get().overrides.task)
    try:
        if config.resume is not None:
            config = door.resumed(folder, config, overrides)
        session.run(config, folder, CONFIGS, overrides)
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
