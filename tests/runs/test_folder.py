"""Finding run folders: through links, once each, and with a word about what cannot be read."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers import ROOT
from vae.runs.folder import find_runs


def make_run(folder: Path, file: str = "config.yaml") -> Path:
    folder.mkdir(parents=True)
    (folder / file).write_text("")
    return folder


def find_with_errors(path: Path) -> tuple[list[Path], list[str]]:
    errors: list[OSError] = []
    return find_runs(path, errors.append), [f"{e.filename}: {e.strerror}" for e in errors]


def test_links_to_runs_and_to_folders_above_runs_are_followed(tmp_path):
    make_run(tmp_path / "sweep/a")
    make_run(tmp_path / "other/b")
    chosen = make_run(tmp_path / "chosen/c").parent
    (chosen / "a").symlink_to(tmp_path / "sweep/a")
    (chosen / "others").symlink_to("../other")
    assert find_with_errors(chosen) == ([chosen / "a", chosen / "c", chosen / "others/b"], [])


def test_a_run_that_several_links_lead_to_is_found_once_and_loops_end(tmp_path):
    run = make_run(tmp_path / "runs/b")
    (tmp_path / "runs/a").symlink_to(run)
    (run / "loop").symlink_to(tmp_path)
    (tmp_path / "runs/c").symlink_to("../runs")
    assert find_with_errors(tmp_path) == ([tmp_path / "runs/a"], [])


def test_links_that_lead_nowhere_are_reported(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "gone").symlink_to("sweep/run")
    (tmp_path / "itself").symlink_to("itself")
    found, errors = find_with_errors(tmp_path)
    assert found == [run]
    assert errors == [f"{tmp_path / name}: the link leads nowhere" for name in ("gone", "itself")]


@pytest.mark.parametrize("name", ["nowhere", "run/config.yaml"])
def test_a_path_that_is_no_folder_is_reported(tmp_path, name):
    make_run(tmp_path / "run")
    found, (error,) = find_with_errors(tmp_path / name)
    assert found == []
    assert error.startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("file", ["status.json", "summary.json", "metrics.jsonl"])
def test_a_run_without_its_configuration_is_found(tmp_path, file):
    run = make_run(tmp_path / "run", file)
    make_run(tmp_path / "other", "notes.txt")
    assert find_runs(tmp_path) == [run]


@pytest.fixture
def open_folder():
    """A folder that every user may read, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_folder_that_must_not_be_read_is_reported(open_folder):
    """A child process gives up the rights of the superuser, for whom nothing is forbidden."""
    make_run(open_folder / "a")
    closed = make_run(open_folder / "b")
    closed.chmod(0)
    program = (
        "import os, sys; from pathlib import Path; from vae.runs.folder import find_runs\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "report = lambda error: print(error.filename, error.strerror)\n"
        "print(*find_runs(Path(sys.argv[1]), report))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, str(open_folder)], cwd=ROOT, capture_output=True, text=True
    )
    closed.chmod(0o755)
    assert process.stdout.splitlines() == [f"{closed} Permission denied", str(open_folder / "a")]
