"""Rules about the code that no tool checks. import-linter checks in which directions imports go.

The contracts of import-linter are in pyproject.toml: `lint-imports`.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

FOLDERS = [ROOT / "vae", *(file.parent for file in (ROOT / "vae").glob("*/__init__.py"))]
HEAVY = {"torch", "torchvision", "tensorboard", "pandas", "matplotlib", "sklearn"}
"""Packages that take a noticeable time to import."""


def imported_names(file: Path) -> set[str]:
    """Return the absolute names of everything that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_models_and_estimators_do_not_import_each_other():
    for name in imported_names(ROOT / "vae/model.py"):
        assert not name.startswith("vae.estimators")
    for file in (ROOT / "vae/estimators").glob("*.py"):
        for name in imported_names(file):
            assert not name.startswith(("vae.model", "vae.networks", "vae.data")), file


@pytest.mark.parametrize("module", ["vae", "vae.cli.train", "vae.cli.evaluate"])
def test_what_help_imports_contains_no_heavy_package(module):
    program = f"import sys, {module}; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert module in process.stdout.split()
    assert not HEAVY & set(process.stdout.split())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_no_level_of_the_package_has_twenty_names(folder):
    names = [path.name for path in folder.iterdir() if path.name != "__pycache__"]
    assert len(names) < 20, sorted(names)


def test_the_readme_has_at_most_200_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
