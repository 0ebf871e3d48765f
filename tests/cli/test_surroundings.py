"""train.py with other paths, streams and limits than usual: what the shell and the system set."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, TINY, finish, read_json, run_script, start_script, wait_until
from vae.cli.train import _check_names
from vae.utils.errors import UserError

ONE_STEP = [*TINY, "training.steps=1", "hydra.run.dir=run"]


@pytest.mark.slow
def test_printed_commands_run_as_they_are_printed(tmp_path):
    cwd = tmp_path / "it's a [1] ü=1"
    cwd.mkdir()
    words = [
        *TINY,
        "seeds=2",
        "training.epochs=4",
        "training.steps=null",
        'hydra.run.dir="lr=0.1 (b)"',
    ]
    process = start_script("train.py", *words, cwd=cwd)
    wait_until(lambda: len(list(cwd.glob("*/*/last.pt"))) == 2 or process.poll() is not None)
    process.terminate()
    _, _, errors = finish(process)
    _, _, resuming = errors.strip().partition("to resume: ")
    output = run_in_shell(resuming, cwd)
    comparing = re.search("To compare them: (.*)", output)
    assert comparing is not None
    assert "straight_through_gumbel" in run_in_shell(comparing.group(1), cwd)


def run_in_shell(command: str, cwd: Path) -> str:
    """Run a command in a shell, assert that it succeeds, and return its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_link_to_the_script_finds_the_options(tmp_path):
    link = tmp_path / "link.py"
    link.symlink_to(ROOT / "train.py")
    process = subprocess.run(
        [sys.executable, link, "latents=0"], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.stderr == "train.py: latents=0: input should be greater than or equal to 1\n"


@pytest.mark.parametrize("closed", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_closed_stream_does_not_change_the_run(closed, tmp_path):
    close = lambda: os.close(int(closed))
    status, output, errors = run_script("train.py", *ONE_STEP, cwd=tmp_path, preexec_fn=close)
    if closed == "1":
        assert status == 1 and errors.count("train.py: ") == 1
        assert "train.py: the results could not be printed: Bad file descriptor" in errors
    else:
        assert status == 0 and "Run folder: " in output
    assert read_json(tmp_path / "run/status.json")["status"] == "finished"


def test_characters_that_a_stream_lacks_are_replaced(tmp_path):
    words = [*TINY, "training.steps=1", 'hydra.run.dir="ü"']
    ascii = {"PYTHONIOENCODING": "ascii"}
    status, output, errors = run_script("train.py", *words, cwd=tmp_path, env=ascii)
    assert status == 0 and "Traceback" not in errors
    assert rf"Run folder: {tmp_path}/\xfc" in output


def test_characters_that_the_locale_lacks_are_refused(tmp_path):
    words = [*TINY, "training.steps=1", 'hydra.run.dir="ü"']
    ascii = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    status, _, errors = run_script("train.py", *words, cwd=tmp_path, env=ascii)
    assert status == 2 and errors.count("\n") == 1
    assert "set PYTHONUTF8=1" in errors


@pytest.mark.parametrize(
    "name, advice", [(b"\xc3\xbc", "set PYTHONUTF8=1"), (b"\xff", "choose another name")]
)
def test_the_advice_for_a_name_that_python_cannot_decode_depends_on_its_bytes(name, advice):
    _check_names("ü", "run")
    with pytest.raises(UserError, match=advice):
        _check_names("run", name.decode("ascii", "surrogateescape"))


def test_a_model_that_does_not_fit_into_memory_is_reported(tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    words = [*ONE_STEP, "latents=20000", "categories=20000"]
    status, _, errors = run_script("train.py", *words, cwd=tmp_path, preexec_fn=limit)
    assert status == 1 and errors.count("\n") == 1
    assert "not enough memory" in errors
    assert not (tmp_path / "run").exists()


def test_replicas_for_which_too_few_files_can_be_open_are_refused(tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    words = [*ONE_STEP, "seeds=60"]
    status, _, errors = run_script("train.py", *words, cwd=tmp_path, preexec_fn=limit)
    assert status == 2 and errors.count("\n") == 1
    assert "244 files must be open at once, and `ulimit -Hn` allows 200" in errors
    assert not (tmp_path / "run").exists()


def test_a_low_limit_of_open_files_is_raised_for_replicas(tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 2000))
    words = [*ONE_STEP, "seeds=6"]
    status, _, errors = run_script("train.py", *words, cwd=tmp_path, preexec_fn=limit)
    assert status == 0, errors
    assert len(list(tmp_path.glob("run/*/summary.json"))) == 6
