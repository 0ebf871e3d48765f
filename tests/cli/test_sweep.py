"""Sweeps: on several cores, by submitit, on a stand-in for Slurm; and searches."""

import os
import pickle
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from tests.helpers import TINY, finish, read_json, start_script, subfolders, wait_until
from vae.cli.sweep import OutputFolder
from vae.runs.folder import locked
from vae.runs.status import read_status

SHORT = [*TINY, "training.steps=3"]
LEARNING_RATE = next(word for word in TINY if word.startswith("optimizer.lr="))
SEARCH = [word for word in SHORT if word != LEARNING_RATE]
LONG = [*TINY, "training.steps=null", "training.epochs=20"]
LONG += ["tracking.pictures_every=0", "tracking.train_images=100"]

RunTrain = Callable[..., tuple[int, str, str]]
"""Runs `train.py -m` with some words; returns the exit status, the output and the errors."""

pytestmark = pytest.mark.usefixtures("float32")

_process_groups: list[int] = []


@pytest.fixture(autouse=True)
def _kill_remaining_processes():
    """Kill what a failing test has left running."""
    yield
    for group in _process_groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    _process_groups.clear()


@pytest.fixture
def train(script, tmp_path) -> RunTrain:
    """Run `train.py -m` in this process."""
    return partial(script, "train.py", "-m", cwd=tmp_path)


def start_sweep(*words: str, cwd: Path, **options: object) -> subprocess.Popen[str]:
    """Start `train.py -m` in a new process group, as a terminal does."""
    process = start_script(
        "train.py",
        *("-m", "sweep=mine", *words),
        cwd=cwd,
        start_new_session=True,
        **{"threads": None} | options,
    )
    _process_groups.append(process.pid)
    return process


def running_processes(group: int, word: str = "") -> list[int]:
    """Return the running processes of a group whose command line contains a word."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            ended = process.status() == psutil.STATUS_ZOMBIE
            if os.getpgid(process.pid) == group and not ended:
                found += [process.pid] if word in " ".join(process.cmdline()) else []
    return found


def epochs(sweep: Path) -> list[int]:
    return [len(file.read_bytes().splitlines()) for file in sweep.glob("*/metrics.jsonl")]


def statuses(sweep: Path) -> list[str | None]:
    return [read_status(file.parent) for file in sweep.glob("*/status.json")]


def threads(sweep: Path) -> set[int]:
    return {read_json(file)["threads"] for file in sweep.glob("*/environment.json")}


# On several cores


SendSignal = Callable[[int, int], None]
"""Sends a signal to a process or to a process group."""


def interrupt_sweep(send: SendSignal, number: int, words: list[str], cwd: Path) -> tuple[int, str]:
    """Signal a sweep of two runs as soon as both have a checkpoint; return status and errors."""
    process = start_sweep(*words, cwd=cwd, threads=1)
    checkpoints = lambda: len(list(cwd.glob("outputs/mine/*/last.pt")))
    wait_until(lambda: checkpoints() == 2 or process.poll() is not None)
    send(process.pid, number)
    status, _, errors = finish(process)
    wait_until(lambda: not running_processes(process.pid))
    return status, errors


CTRL_C = (os.killpg, signal.SIGINT)


@pytest.mark.parametrize(
    "send, number",
    [CTRL_C, *(pytest.param(os.kill, n, marks=pytest.mark.slow) for n in (2, 15, 10))],
)
def test_an_interrupted_sweep_leaves_no_process_and_can_be_resumed(tmp_path, send, number, train):
    words = ["hydra/launcher=joblib", "seed=0,1", *LONG]
    status, errors = interrupt_sweep(send, number, [*words, "hydra.launcher.n_jobs=2"], tmp_path)
    assert status == 128 + number
    command = errors.partition("to resume: ")[2]
    assert "train.py -m sweep=mine" in command and "seed=0,1" in command
    assert "Traceback" not in errors and "leaked" not in errors
    sweep = tmp_path / "outputs/mine"
    # The runs have saved a checkpoint, although the signal has reached them as well.
    assert statuses(sweep).count("finished") < 2
    assert set(statuses(sweep)) <= {"interrupted", "finished"}
    status, output, errors = train(*words, "sweep=mine", "hydra.launcher.n_jobs=1")
    assert status == 0, errors
    assert "resuming after step" in output
    assert statuses(sweep) == ["finished"] * 2 and epochs(sweep) == [20] * 2


@pytest.mark.slow
def test_a_killed_worker_is_reported_in_one_line(tmp_path):
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", *LONG]

    def kill_a_worker(group: int, number: int) -> None:
        os.kill(running_processes(group, "LokyProcess")[0], number)

    status, errors = interrupt_sweep(kill_a_worker, signal.SIGKILL, words, tmp_path)
    assert status == 1 and errors.count("\n") == 1
    assert "A worker process" in errors and "SIGKILL" in errors


def test_workers_end_if_the_sweep_is_killed(tmp_path):
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", *LONG]
    process = start_sweep(*words, "training.epochs=1000", cwd=tmp_path, threads=1)
    wait_until(lambda: len(list(tmp_path.glob("outputs/mine/*/last.pt"))) == 2)
    process.kill()
    finish(process)  # the workers hold its pipes
    wait_until(lambda: not running_processes(process.pid))
    assert statuses(tmp_path / "outputs/mine") == ["interrupted"] * 2


def test_a_sweep_reports_its_failures_from_a_folder_of_its_jobs(tmp_path, train):
    words = ["estimator=exact", "estimator.limit=10", "sweep=mine", *SHORT]
    status, _, errors = train("hydra.job.chdir=True", *words)
    assert status == 2 and errors.startswith("train.py: job 0: estimator: Exact enumerates")
    assert (tmp_path / "outputs/mine/failed").is_dir()


WRONG_SWEEPS = {
    "no processes": (
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"],
        *("hydra.launcher.n_jobs=0", "n_jobs == 0 in Parallel has no meaning"),
    ),
    "empty batches of joblib": (
        ["hydra/launcher=joblib", "hydra.launcher.batch_size=0"],
        *("hydra.launcher.batch_size=0", "positive integer"),
    ),
    "word for a number": (
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=x"],
        *("hydra.launcher.n_jobs=x", "could not be converted to Integer"),
    ),
    "empty batches of the sweeper": (
        ["hydra.sweeper.max_batch_size=0"],
        "hydra.sweeper.max_batch_size=0: AssertionError",
    ),
    "key that the default option lacks": (
        ["estimator=reinmax_rao,gumbel_rao", "estimator.inner_samples=10"],
        "estimator.inner_samples: estimator is varied",
        "write ++estimator.inner_samples=10",
    ),
    "folder of a single run": (["hydra.run.dir=x"], "hydra.run.dir=x has no effect with -m"),
    "sweep without a name": (["sweep="], "sweep= names no folder"),
    "sweep folder without a name": (["hydra.sweep.dir=''"], "hydra.sweep.dir= names no folder"),
}


@pytest.mark.parametrize("case", WRONG_SWEEPS)
def test_a_wrong_sweep_is_refused_in_one_line_with_status_2(case, train, tmp_path):
    words, *expected = WRONG_SWEEPS[case]
    status, _, errors = train("seed=0,1", *words, *SHORT)
    assert status == 2
    assert errors.startswith("train.py: ") and errors.count("\n") == 1
    for part in expected:
        assert part in errors


def test_keys_that_only_the_varied_options_have_can_be_set(train, tmp_path):
    words = ["estimator=reinmax_rao,gumbel_rao", "++estimator.inner_samples=3", "sweep=mine"]
    status, _, errors = train(*words, *SHORT)
    assert (status, errors) == (0, "")
    configs = [yaml.safe_load(f.read_text()) for f in tmp_path.glob("outputs/mine/*/config.yaml")]
    assert [config["estimator"]["inner_samples"] for config in configs] == [3, 3]


def test_the_flag_for_a_sweep_may_stand_between_overrides(script, tmp_path):
    status, _, errors = script("train.py", *SHORT, "-m", "seed=0,1", "sweep=mine", cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert statuses(tmp_path / "outputs/mine") == ["finished"] * 2


# Records of failed jobs


def test_a_repeated_sweep_reports_its_own_failures_and_removes_nothing(tmp_path, train):
    words = ["estimator=exact", "sweep=mine", *SHORT]
    status, output, errors = train(*words, "estimator.limit=10")
    assert status == 2 and errors.count("\n") == 1
    assert errors.startswith("train.py: job 0: estimator: ")
    assert "Exact enumerates" in output  # at once, and not only at the end
    failed = tmp_path / "outputs/mine/failed"
    (record,) = failed.glob("*/0.json")
    (failed / "notes.txt").write_text("of the user")
    status, _, errors = train(*words, "estimator.limit=100")
    assert (status, errors) == (0, "")
    assert record.exists() and (failed / "notes.txt").exists()


@pytest.mark.slow
def test_two_sweeps_in_one_folder_report_their_own_failures(tmp_path, train):
    words = ["estimator=exact", "sweep=mine", *TINY, "training.steps=null"]
    process = start_sweep(*words, "training.epochs=10", "estimator.limit=10,100", cwd=tmp_path)
    sweep = tmp_path / "outputs/mine"
    wait_until(lambda: bool(list(sweep.glob("failed/*/0.json"))))
    status, _, errors = train(*words, "training.steps=3", "seed=5", "estimator.limit=100")
    assert process.poll() is None, "the first sweep should have lasted longer"
    assert (status, errors) == (0, "")
    status, _, errors = finish(process)
    assert status == 2 and "job 0 (estimator.limit=10): estimator: Exact enumerates" in errors
    assert statuses(sweep) == ["finished"] * 2


@pytest.mark.slow
def test_a_sweep_waits_for_a_run_that_another_process_is_training(tmp_path):
    folder = tmp_path / "outputs/mine/job"
    folder.mkdir(parents=True)
    with locked(folder):
        process = start_sweep("hydra.sweep.subdir=job", *SHORT, cwd=tmp_path)
        waiting = ""
        while "waiting for another process" not in waiting:
            waiting = process.stdout.readline()
            assert waiting, "the sweep has ended"
        assert process.poll() is None
    status, _, errors = finish(process)
    assert (status, errors) == (0, "")
    assert read_status(folder) == "finished"


def test_a_sweep_that_resumes_other_runs_leaves_no_folder(train, tmp_path):
    assert train("sweep=mine", "seed=0,1", *SHORT)[0] == 0
    runs = sorted(str(file.parent) for file in tmp_path.rglob("status.json"))
    status, _, errors = train(f"resume={','.join(runs)}", "training.steps=4")
    assert status == 0, errors
    assert [folder.name for folder in (tmp_path / "outputs").iterdir()] == ["mine"]


def test_a_resumed_sweep_removes_the_new_folders_of_jobs_that_fail_early(train, tmp_path):
    (tmp_path / "outputs/mine/job_0").mkdir(parents=True)
    words = [*SHORT, "sweep=mine", "latents=0,-1", "hydra.sweep.subdir=job_${latents}"]
    assert train(*words)[0] == 2
    assert subfolders(tmp_path / "outputs/mine") == ["failed", "job_0"]


def test_a_worker_knows_which_folders_are_new(tmp_path, monkeypatch):
    monkeypatch.setattr(OutputFolder, "sweep", None)
    monkeypatch.setattr(OutputFolder, "keeps_empty_folder", False)
    (tmp_path / "old").mkdir()
    callback = OutputFolder(failed="failed")
    callback.on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    worker_callback = pickle.loads(pickle.dumps(callback))
    for name in ("old", "new"):
        runtime = {"output_dir": str(tmp_path / name)}
        worker_callback.on_job_start(OmegaConf.create({"hydra": {"runtime": runtime}}))
        assert OutputFolder.keeps_empty_folder == (name == "old")


# On a cluster

SBATCH = """#!/bin/bash
# Runs each task of the array, as Slurm would.
here=$(dirname "$0"); cp "$1" "$here/script"
tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
cpus=$(sed -n 's/^#SBATCH --cpus-per-task=//p' "$1")
export SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_JOB_NODELIST=here SLURM_CPUS_PER_TASK=$cpus
export SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
for task in $(seq 0 $tasks); do
    SLURM_ARRAY_TASK_ID=$task bash "$here/script" > "$here/$task.log" 2>&1 &
done
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] && shift || shift 2; done
exec "$@"
"""
SACCT = """#!/bin/bash
printf 'JobID|State|NodeList\\n7_0|RUNNING|here\\n7_1|RUNNING|here\\n'
"""

CANCELLED = {
    "sbatch": """#!/bin/bash
error=$(sed -n 's/^#SBATCH --error=//p' "$1" | sed 's/%A/7/g; s/%a/0/g')
mkdir -p "$(dirname "$error")"; echo "slurmstepd: JOB 7 CANCELLED" > "$error"
echo "Submitted batch job 7"
""",
    "sacct": """#!/bin/bash
printf 'JobID|State|NodeList\\n7_0|CANCELLED by 0|here\\n7_1|RUNNING|here\\n'
""",
}


def run_on_slurm(scripts: dict[str, str], cwd: Path, *words: str) -> tuple[int, str, str]:
    """Run a sweep with these scripts as the commands of Slurm."""
    for name, script in scripts.items():
        (cwd / name).write_text(script)
        (cwd / name).chmod(0o755)
    path = {"PATH": f"{cwd}:{os.environ['PATH']}"}
    return finish(start_sweep("hydra/launcher=slurm", *words, *SHORT, cwd=cwd, env=path))


def test_slurm_is_given_its_flags_and_reports_like_any_sweep(tmp_path):
    scripts = {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}
    words = ["hydra.launcher.cpus_per_task=1", "estimator=exact", "estimator.limit=10,100"]
    status, _, errors = run_on_slurm(scripts, tmp_path, *words)
    assert status == 2 and errors.count("\n") == 1
    assert "job 0 (estimator.limit=10): estimator: Exact enumerates" in errors
    sweep = tmp_path / "outputs/mine"
    assert statuses(sweep) == ["finished"]
    assert threads(sweep) == {1}
    flags = (tmp_path / "script").read_text()
    for flag in ("requeue", "signal=USR2@120", "time=240", "cpus-per-task=1", "array=0-1%2"):
        assert f"#SBATCH --{flag}\n" in flags


@pytest.mark.slow
def test_a_job_that_slurm_cancelled_is_reported_in_one_line(tmp_path):
    status, _, errors = run_on_slurm(CANCELLED | {"srun": SRUN}, tmp_path, "seed=0,1")
    assert status == 1 and errors.count("\n") == 1
    assert errors.endswith("has not produced any output (state: CANCELLED by 0)\n")


def test_a_machine_without_slurm_is_reported_in_one_line(tmp_path, train, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, errors = train("hydra/launcher=slurm", *SHORT)
    assert status == 1 and errors.count("\n") == 1 and "slurm cluster" in errors


@pytest.mark.slow
def test_a_job_that_is_out_of_time_is_queued_again_and_resumed(tmp_path):
    words = ["hydra/launcher=submitit_local", *LONG]
    process = start_sweep(*words, cwd=tmp_path, threads=1)
    sweep = tmp_path / "outputs/mine"
    wait_until(lambda: sum(epochs(sweep)) > 2)
    (job,) = running_processes(process.pid, "submitit.core._submit")
    os.kill(job, signal.SIGUSR2)  # submitit asks Slurm for this signal
    status, _, errors = finish(process)
    assert status == 0, errors
    assert statuses(sweep) == ["finished"] and epochs(sweep) == [20]
    (output,) = sweep.glob(".submitit/*/*_log.out")
    assert "Requeued job" in output.read_text()
    assert "resuming after step" in output.read_text()


@pytest.mark.parametrize(
    "group, option, plugin, extra",
    [
        ("launcher", "slurm", "submitit_slurm", "cluster"),
        ("launcher", "submitit_local", "submitit_local", "cluster"),
        ("sweeper", "search", "optuna", "search"),
    ],
)
def test_a_missing_extra_is_named(script, tmp_path, monkeypatch, group, option, plugin, extra):
    script("train.py", "--cfg", "hydra", cwd=tmp_path)  # now Hydra knows its plugins
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"][group], f"{plugin}.yaml")
    status, _, errors = script("train.py", f"hydra/{group}={option}", *SHORT, cwd=tmp_path)
    assert status == 2 and errors.count("\n") == 1
    assert f"hydra/{group}={plugin}" in errors and f"'.[{extra}]'" in errors


# Searches


@pytest.fixture
def search(train) -> Iterator[RunTrain]:
    """Run a search in this process, without Optuna's log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna 2 calls deprecated functions of its dependencies
        import optuna

        optuna.logging.disable_default_handler()  # it would keep the stderr of the first test
        yield partial(train, "hydra/sweeper=search", "sweep=mine", *SEARCH)


def best_elbos(sweep: Path) -> list[float]:
    return [read_json(file)["best_elbo"] for file in sweep.glob("*/summary.json")]


def test_a_search_maximises_the_elbo_and_can_be_resumed(tmp_path, search):
    sweep = tmp_path / "outputs/mine"
    for trials in (2, 3):
        status, output, errors = search(f"hydra.sweeper.n_trials={trials}")
        assert status == 0, errors
        assert len(best_elbos(sweep)) == trials
        results = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
        assert results["best_value"] == max(best_elbos(sweep))
    assert output.count("is finished: nothing to do") == 2
    assert len(set(best_elbos(sweep))) == 3
    assert set(results["best_params"]) == {"optimizer.lr"}
    assert 1e-4 <= results["best_params"]["optimizer.lr"] <= 1e-2


def test_a_search_continues_after_a_failed_job(tmp_path, search):
    words = ["hydra.sweeper.n_trials=2", "estimator.temperature=choice(-1.0,0.5)"]
    status, _, errors = search(*words)
    assert status == 2 and errors.count("\n") == 1
    assert "estimator.temperature: must stay greater than 0, but falls to -1" in errors
    assert len(best_elbos(tmp_path / "outputs/mine")) == 1


def test_a_search_in_no_processes_is_refused(search):
    status, _, errors = search("hydra.sweeper.n_jobs=0")
    assert status == 2 and errors.count("\n") == 1
    assert "hydra.sweeper.n_jobs=0: " in errors


def test_a_search_without_a_score_reports_why(search, monkeypatch):
    def fail(*arguments: object) -> None:
        raise KeyError("a mistake in the program")

    monkeypatch.setattr("vae.config.build.build_experiment", fail)
    status, _, errors = search("hydra.sweeper.n_trials=1")
    assert status == 1
    assert "train.py: no run of this search has a score" in errors
    assert "train.py: job 0 (optimizer.lr=" in errors
    assert "): KeyError: 'a mistake in the program'" in errors


@pytest.mark.slow
def test_a_search_can_use_several_cores(tmp_path):
    words = ["hydra/sweeper=search", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2"]
    words += ["hydra/launcher=joblib", *SEARCH]
    status, _, errors = finish(start_sweep(*words, cwd=tmp_path))
    assert status == 0, errors
    sweep = tmp_path / "outputs/mine"
    results = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert len(best_elbos(sweep)) == 4 and results["best_value"] == max(best_elbos(sweep))
