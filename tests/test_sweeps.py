"""Sweeps by the real command line: over cores, by submitit, on a stand-in for Slurm; searches."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import joblib
import psutil
import pytest
import torch
import yaml
from conftest import ROOT, TINY
from hydra.core.config_store import ConfigStore

from vae.config import build as door
from vae.runs import status as run_state

SHORT = [*TINY, "training.steps=3"]
TINY_LR = next(word for word in TINY if word.startswith("optimizer.lr="))
SEARCHED = [word for word in SHORT if word != TINY_LR]
LONG = [*TINY, "training.steps=null", "training.epochs=20"]
LONG += ["tracking.pictures_every=0", "tracking.train_images=100"]

_started: list[int] = []  # process groups


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _nothing_survives():
    """What a failing test has left running."""
    yield
    for group in _started:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    _started.clear()


@pytest.fixture
def inside(script, tmp_path):
    """train.py -m in this process: its exit status, output and errors."""
    return partial(script, "train.py", "-m", cwd=tmp_path)


def start(*words: str, cwd: Path, **environment: str) -> subprocess.Popen:
    """train.py -m in a session, and so in a process group, of its own, as in a terminal."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", "sweep=mine", *words],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _started.append(process.pid)
    return process


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def eventually(true) -> bool:
    end = time.monotonic() + 120
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def alive(group: int, word: str = "") -> list[int]:
    """The processes of a group that have not ended and whose command line holds the word."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            ended = process.status() == psutil.STATUS_ZOMBIE
            if os.getpgid(process.pid) == group and not ended:
                found += [process.pid] if word in " ".join(process.cmdline()) else []
    return found


def epochs(sweep: Path) -> list[int]:
    return [len(file.read_bytes().splitlines()) for file in sweep.glob("*/metrics.jsonl")]


def statuses(sweep: Path) -> list[str]:
    return [run_state.read_status(file.parent) for file in sweep.glob("*/status.json")]


def threads(sweep: Path) -> set[int]:
    files = sweep.glob("*/environment.json")
    return {json.loads(file.read_text())["threads"] for file in files}


# Over the cores


def test_jobs_share_the_cores_and_a_failing_one_leaves_the_rest_alone(tmp_path):
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "estimator=exact"]
    words += [*SHORT, "estimator.limit=10,100,101"]
    status, out, err = finish(start(*words, cwd=tmp_path))
    assert status == 2
    assert err.startswith("train.py: #0: estimator: Exact enumerates") and err.count("\n") == 1
    sweep = tmp_path / "outputs/mine"
    assert statuses(sweep) == ["finished", "finished"]
    assert threads(sweep) == {max(joblib.cpu_count() // 2, 1)}
    failed = json.loads((sweep / "failed/0.json").read_text())
    assert "estimator.limit=10" in failed["overrides"]


def interrupted(how, number: int, words: list[str], cwd: Path) -> tuple[int, str]:
    """A sweep over two cores that is signalled when two of its runs have begun, and its end."""
    process = start(*words, cwd=cwd, OMP_NUM_THREADS="1")
    kept = lambda: len(list(cwd.glob("outputs/mine/*/last.pt")))
    assert eventually(lambda: kept() == 2 or process.poll() is not None)
    how(process.pid, number)
    status, _, err = finish(process)
    assert eventually(lambda: not alive(process.pid)), alive(process.pid)
    return status, err


CTRL_C = (os.killpg, signal.SIGINT)


@pytest.mark.parametrize(
    "how, number",
    [CTRL_C, *(pytest.param(os.kill, n, marks=pytest.mark.slow) for n in (2, 15, 10))],
)
def test_an_interrupted_sweep_leaves_no_process_and_goes_on(tmp_path, how, number, inside):
    words = ["hydra/launcher=joblib", "seed=0,1", *LONG]
    status, err = interrupted(how, number, [*words, "hydra.launcher.n_jobs=2"], tmp_path)
    assert status == 128 + number
    assert (
        "go on with the same command and sweep=mine" in err
        and "Traceback" not in err
        and "leaked" not in err
    )
    sweep = tmp_path / "outputs/mine"
    assert statuses(sweep).count("finished") < 2
    status, out, err = inside(*words, "sweep=mine", "hydra.launcher.n_jobs=1")
    assert status == 0, err
    assert "going on after step" in out
    assert statuses(sweep) == ["finished"] * 2 and epochs(sweep) == [20] * 2


@pytest.mark.slow
def test_a_worker_that_is_killed_is_said_in_one_line(tmp_path):
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", *LONG]

    def kill_a_worker(group: int, number: int) -> None:
        os.kill(alive(group, "LokyProcess")[0], number)

    status, err = interrupted(kill_a_worker, signal.SIGKILL, words, tmp_path)
    assert status == 1 and err.count("\n") == 1
    assert "A worker process" in err and "SIGKILL" in err


# What failed


def test_what_failed_is_forgotten_when_the_sweep_is_given_again(tmp_path, inside):
    words = ["estimator=exact", "sweep=mine", *SHORT]
    status, out, err = inside(*words, "estimator.limit=10")
    assert status == 2 and err.count("\n") == 1 and err.startswith("train.py: #0: estimator: ")
    assert "Exact enumerates" in out  # at once, and not only at the end
    assert (tmp_path / "outputs/mine/failed/0.json").exists()
    assert inside(*words, "estimator.limit=100")[0] == 0
    assert not (tmp_path / "outputs/mine/failed").exists()


def test_runs_gone_on_with_leave_no_folder_of_a_sweep(inside, tmp_path):
    assert inside("sweep=mine", "seed=0,1", *SHORT)[0] == 0
    runs = sorted(str(file.parent) for file in tmp_path.rglob("status.json"))
    code, _, err = inside(f"resume={','.join(runs)}", "training.steps=4")
    assert code == 0, err
    assert [folder.name for folder in (tmp_path / "outputs").iterdir()] == ["mine"]


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


def on_slurm(scripts: dict[str, str], cwd: Path, *words: str) -> tuple[int, str, str]:
    """A sweep where these commands are what there is of Slurm."""
    for name, script in scripts.items():
        (cwd / name).write_text(script)
        (cwd / name).chmod(0o755)
    path = f"{cwd}:{os.environ['PATH']}"
    return finish(start("hydra/launcher=slurm", *words, *SHORT, cwd=cwd, PATH=path))


def test_slurm_gets_what_it_needs_and_answers_as_any_sweep(tmp_path):
    scripts = {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}
    words = ["hydra.launcher.cpus_per_task=1", "estimator=exact", "estimator.limit=10,100"]
    status, out, err = on_slurm(scripts, tmp_path, *words)
    assert status == 2 and err.count("\n") == 1 and "#0: estimator: Exact enumerates" in err
    sweep = tmp_path / "outputs/mine"
    assert statuses(sweep) == ["finished"]
    assert threads(sweep) == {1}
    flags = (tmp_path / "script").read_text()
    for flag in ("requeue", "signal=USR2@120", "time=240", "cpus-per-task=1", "array=0-1%2"):
        assert f"#SBATCH --{flag}\n" in flags


def test_a_job_that_slurm_has_cancelled_is_said_in_one_line(tmp_path):
    status, _, err = on_slurm(CANCELLED | {"srun": SRUN}, tmp_path, "seed=0,1")
    assert status == 1 and err.count("\n") == 1
    assert err.endswith("has not produced any output (state: CANCELLED by 0)\n")


def test_where_there_is_no_slurm_it_says_so(tmp_path, inside, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, err = inside("hydra/launcher=slurm", *SHORT)
    assert status == 1 and err.count("\n") == 1 and "slurm cluster" in err


@pytest.mark.slow
def test_a_job_that_has_no_time_left_is_queued_again_and_goes_on(tmp_path):
    words = ["hydra/launcher=submitit_local", *LONG]
    process = start(*words, cwd=tmp_path, OMP_NUM_THREADS="1")
    sweep = tmp_path / "outputs/mine"
    assert eventually(lambda: sum(epochs(sweep)) > 2)
    (job,) = alive(process.pid, "submitit.core._submit")
    os.kill(job, signal.SIGUSR2)  # what submitit has Slurm send
    status, _, err = finish(process)
    assert status == 0, err
    assert statuses(sweep) == ["finished"] and epochs(sweep) == [20]
    (printed,) = sweep.glob(".submitit/*/*_log.out")
    assert "Requeued job" in printed.read_text()
    assert "going on after step" in printed.read_text()


@pytest.mark.parametrize(
    "group, option, plugin, extra",
    [
        ("launcher", "slurm", "submitit_slurm", "cluster"),
        ("launcher", "submitit_local", "submitit_local", "cluster"),
        ("sweeper", "search", "optuna", "search"),
    ],
)
def test_a_missing_extra_is_named(script, tmp_path, monkeypatch, group, option, plugin, extra):
    script("train.py", "--cfg", "hydra", cwd=tmp_path)  # now the plugins are known
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"][group], f"{plugin}.yaml")
    status, _, err = script("train.py", f"hydra/{group}={option}", *SHORT, cwd=tmp_path)
    assert status == 2 and err.count("\n") == 1
    assert f"hydra/{group}={plugin}" in err and f"'.[{extra}]'" in err


# Searches


@pytest.fixture
def search(inside):
    """A search in this process. Optuna's own log would go to the first test's stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna 2 is older than what it stands on
        import optuna

        optuna.logging.disable_default_handler()
        yield partial(inside, "hydra/sweeper=search", "sweep=mine", *SEARCHED)


def answers(sweep: Path) -> list[float]:
    return [json.loads(file.read_text())["best_elbo"] for file in sweep.glob("*/summary.json")]


def test_a_search_maximises_the_elbo_and_goes_on(tmp_path, search):
    sweep = tmp_path / "outputs/mine"
    for trials in (2, 3):
        status, out, err = search(f"hydra.sweeper.n_trials={trials}")
        assert status == 0, err
        assert len(answers(sweep)) == trials
        found = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
        assert found["best_value"] == max(answers(sweep))
    assert out.count("is finished: nothing to do") == 2
    assert len(set(answers(sweep))) == 3
    assert set(found["best_params"]) == {"optimizer.lr"}
    assert 1e-4 <= found["best_params"]["optimizer.lr"] <= 1e-2


def test_a_search_survives_what_fails(tmp_path, search):
    words = ["hydra.sweeper.n_trials=2", "estimator.temperature=choice(-1.0,0.5)"]
    status, _, err = search(*words)
    assert status == 2 and err.count("\n") == 1
    assert "estimator.temperature: must stay greater than 0, but falls to -1" in err
    assert len(answers(tmp_path / "outputs/mine")) == 1


def test_a_search_without_an_answer_says_why(search, monkeypatch):
    def broken(*arguments: object) -> None:
        raise KeyError("a mistake in the program")

    monkeypatch.setattr(door, "prepare", broken)
    status, _, err = search("hydra.sweeper.n_trials=1")
    assert status == 1
    assert "train.py: no run of this search has a score" in err
    assert "train.py: #0: KeyError: 'a mistake in the program'" in err


@pytest.mark.slow
def test_a_search_over_the_cores(tmp_path):
    words = ["hydra/sweeper=search", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2"]
    words += ["hydra/launcher=joblib", *SEARCHED]
    status, _, err = finish(start(*words, cwd=tmp_path))
    assert status == 0, err
    sweep = tmp_path / "outputs/mine"
    found = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert len(answers(sweep)) == 4 and found["best_value"] == max(answers(sweep))


@pytest.mark.parametrize(
    "summary, score",
    [
        ('{"best_epoch": 2, "best_elbo": -101.5, "train": {"elbo": -99.0}}', -101.5),
        ('{"best_epoch": null, "best_elbo": null, "train": {"elbo": -99.0}}', -99.0),
        ('{"best_epoch": null, "best_elbo": null, "train": {"elbo": NaN}}', None),
        ('{"best_epoch": 2, "train": {"elbo": -99.0}}', None),  # of an earlier version
        ("", None),
        (None, None),
    ],
)
def test_the_score_of_a_run(tmp_path, summary, score):
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    assert run_state.score(tmp_path) == score
