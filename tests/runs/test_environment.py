"""The git revision is that of this code, or None; never that of another repository."""

import subprocess
from pathlib import Path

import pytest

from vae.runs.environment import git_revision


def git(folder: Path, *words: str) -> str:
    """Run git as a user with a name, and return what it prints."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit_all(folder: Path) -> str:
    """Commit all files, and return the hash of the commit."""
    git(folder, "add", ".")
    git(folder, "commit", "-m", "Add files")
    return git(folder, "rev-parse", "HEAD")


def write_package(folder: Path) -> Path:
    """Write a package into a folder, and return the folder of the package."""
    package = folder / "vae/runs"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    return package


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """Return a repository with one commit. Nothing of the machine's own git is visible."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init")
    (folder / ".gitignore").write_text(".venv\n")
    (folder / "analysis.py").write_text("")
    commit_all(folder)
    return folder


@pytest.mark.parametrize("environment", [".venv", "env"], ids=["ignored", "untracked"])
def test_package_in_an_environment_inside_another_repository_has_no_revision(
    repository, environment
):
    package = write_package(repository / environment / "lib/site-packages")
    assert git_revision(package) is None


def test_tracked_package_has_the_revision_of_its_repository(repository):
    package = write_package(repository / "vendored")  # a copy that the repository tracks
    revision = commit_all(repository)
    assert git_revision(package) == revision
    (repository / "notes.txt").write_text("untracked")
    assert git_revision(package) == revision
    (package / "__init__.py").write_text("changed")
    assert git_revision(package) == f"{revision}-dirty"


def test_worktrees_and_submodules_have_their_own_revision(repository, tmp_path):
    write_package(repository)
    revision = commit_all(repository)
    git(repository, "worktree", "add", "../worktree")
    (tmp_path / "worktree/new.py").write_text("")
    in_worktree = commit_all(tmp_path / "worktree")
    assert git_revision(tmp_path / "worktree/vae/runs") == in_worktree != revision

    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init")
    git(outer, "submodule", "add", str(repository), "vae")
    commit_all(outer)
    assert git_revision(outer / "vae/vae/runs") == revision


def test_variables_of_a_git_hook_do_not_name_the_repository(repository, tmp_path, monkeypatch):
    package = write_package(repository)
    revision = commit_all(repository)
    other = tmp_path / "other"
    other_package = write_package(other)
    git(other, "init")
    commit_all(other)
    installed = write_package(tmp_path / "site-packages")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    assert git_revision(package) == revision
    assert git_revision(installed) is None
    assert git_revision(other_package) not in (None, revision)


@pytest.mark.parametrize("code", ["no commit", "no repository", "no folder", "no git", "no owner"])
def test_revision_is_none_if_git_has_no_answer(repository, tmp_path, monkeypatch, code):
    package = write_package(repository)
    commit_all(repository)
    match code:
        case "no commit":
            package = write_package(tmp_path / "empty")
            git(tmp_path / "empty", "init")
            git(tmp_path / "empty", "add", ".")
        case "no repository":
            package = write_package(tmp_path / "plain")
        case "no folder":
            package = tmp_path / "nowhere"
        case "no git":
            monkeypatch.setenv("PATH", str(tmp_path))
        case "no owner":  # git refuses to read what seems to be the repository of another user
            monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert git_revision(package) is None
