"""The package itself: what `import vae` provides, and what it does not import."""

import re
import subprocess
import sys

import pytest

import vae
from tests.helpers import ROOT


def run_python(program: str) -> None:
    """Run a program in a new process, and assert that it succeeds."""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("package", ["torch", "numpy", "hydra", "omegaconf"])
def test_import_of_vae_imports_no_other_package(package):
    run_python(f"import sys, vae; vae.__version__; assert {package!r} not in sys.modules")


def test_submodules_are_available_after_the_import_of_vae_alone():
    run_python("import vae; vae.estimators.ReinMax(temperature=1.0)")


def test_every_submodule_that_dir_lists_can_be_used():
    run_python("import vae; [getattr(vae, name) for name in dir(vae)]")


def test_version_has_three_numbers():
    assert re.fullmatch(r"\d+\.\d+\.\d+", vae.__version__)


@pytest.mark.parametrize("name", ["estimator", "ReinMax", "torch"])
def test_unknown_attribute_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module 'vae' has no attribute '{name}'"):
        getattr(vae, name)
