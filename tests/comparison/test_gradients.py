"""The gradients of saved runs are measured with their own estimators or with new ones."""

from pathlib import Path

import pytest

from tests.helpers import option_names
from vae.cli.estimators import build_estimators, expand_names
from vae.comparison.collect import DataCache
from vae.comparison.gradients import measure
from vae.config.load import SavedRun
from vae.estimators import Exact, ReinMax
from vae.tracking.metrics import read_metrics
from vae.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def folder(trained) -> Path:
    """Return the folder of one run; no test changes it."""
    (folder,) = trained.glob("straight_through_*seed0*")
    return folder


def test_gradient_along_training_is_in_the_metrics_of_a_run(folder):
    metrics = read_metrics(folder)
    assert {"gradient/bias", "gradient/variance", "gradient/cosine"} <= set(metrics)
    assert (metrics["gradient/variance"] > 0).all()
    assert (metrics["gradient/bias_error"] > 0).all()


def test_all_estimators_are_those_of_the_option_files_except_the_exact_one(folder):
    run = SavedRun(folder)
    estimators = build_estimators(expand_names(["all"]), run)
    assert set(estimators) == {*option_names("estimator")} - {"exact"}


def test_estimators_that_cannot_handle_the_codes_of_a_run_are_refused(folder):
    run = SavedRun(folder)
    assert set(build_estimators(["exact:limit=16"], run)) == {"exact:limit=16"}
    with pytest.raises(UserError, match=r"--estimators exact:limit=15: .*4\*\*2 is more than"):
        build_estimators(["exact:limit=15"], run)


def test_setting_of_an_estimator_without_a_value_is_refused_in_one_line(folder):
    with pytest.raises(UserError, match="an override needs a value, as in") as caught:
        build_estimators(["reinmax:temperature"], SavedRun(folder))
    assert "\n" not in str(caught.value)


def test_run_is_measured_with_the_estimator_of_its_training_by_default(folder):
    run = SavedRun(folder)
    data, _ = DataCache().get(run)
    measured = measure(run, None, data, draws=40)
    assert measured.trained_with == "straight_through"
    assert list(measured.quality) == ["straight_through"]
    assert "100 test images, 40 draws" in measured.title


def test_exact_estimator_is_left_out_because_it_is_the_reference(folder):
    run = SavedRun(folder)
    data, _ = DataCache().get(run)
    estimators = {"exact": Exact(limit=100), "reinmax": ReinMax(temperature=1.0)}
    measured = measure(run, estimators, data, draws=40)
    assert measured.trained_with == "straight_through"
    assert list(measured.quality) == ["reinmax"]
