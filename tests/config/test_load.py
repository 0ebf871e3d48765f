"""Reading a run folder: each file once, only parts of runs, and damage in one line."""

from pathlib import Path

import pytest
import torch
import yaml

import vae
from tests.helpers import TINY, build_run
from vae.config.load import SavedRun, to_yaml
from vae.runs.folder import CONFIG
from vae.training import checkpoint
from vae.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def run(tmp_path) -> Path:
    """Return a run folder with a configuration and checkpoints of two steps."""
    return write_run(tmp_path)


def write_run(folder: Path, *overrides: str) -> Path:
    built = build_run(*TINY, "estimator=reinforce_learned_baseline", *overrides)
    (folder / CONFIG).write_text(to_yaml(built.values))
    for which, step in (("best", 40), ("last", 41)):
        with torch.no_grad():
            next(built.objective.model.parameters()).fill_(step)
        content = {"objective": built.objective.state_dict(), "step": step}
        checkpoint.save(folder, which, content)
    return folder


def change_config(run: Path, **changed: object) -> None:
    values = yaml.safe_load((run / CONFIG).read_text())
    for key, value in changed.items():
        group, _, name = key.partition("__")
        if name:
            values[group][name] = value
        else:
            values[key] = value
    (run / CONFIG).write_text(yaml.dump(values))


def test_the_best_model_is_loaded_by_default(run):
    best, last = (vae.load(run, which) for which in ("best", "last"))
    default = vae.load(run)
    weight = lambda model: next(model.parameters())[0, 0].item()
    assert (weight(best), weight(last), weight(default)) == (40, 41, 40)
    assert not default.training
    checkpoint.path(run, "best").unlink()
    assert weight(vae.load(run)) == 41


def test_a_saved_run_reads_each_file_once(run, file_reads):
    saved = SavedRun(run)
    assert saved.saved_models() == ["best", "last"]
    for which in saved.saved_models():
        saved.model(which)
        saved.estimator(which)
        assert saved.step(which) == {"best": 40, "last": 41}[which]
        assert len(saved.checkpoint(which)["digest"]) == 64
    assert saved.total_steps() == 41
    assert file_reads(run) == {CONFIG: 1, "best.pt": 1, "last.pt": 1}


def test_a_run_that_is_older_than_some_options_of_the_model_is_read_as_before(tmp_path):
    run = write_run(tmp_path, "model.output_bias=default", "model.center_input=false")
    state = vae.load(run).state_dict()
    values = yaml.safe_load((run / CONFIG).read_text())
    complete = SavedRun(run).values
    for key in ("output_bias", "center_input", "posterior"):
        del values["model"][key]
    (run / CONFIG).write_text(yaml.dump(values))
    assert SavedRun(run).values == complete  # so that tables put it beside newer runs
    loaded = vae.load(run)
    assert not loaded.uses_data_mean and loaded.posterior == "softmax"
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())


# Damaged and foreign files


def test_a_checkpoint_of_another_model_is_refused(run):
    change_config(run, model__categories=7)
    with pytest.raises(UserError, match="a different model"):
        vae.load(run)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "vae.training.checkpoint.os.system",
        "vae.utils.files.write_atomically",
        "vae.tracking.Logger",
        "builtins.eval",
        "torch.optim.Adam",
        "subprocess.Popen",
    ],
)
@pytest.mark.parametrize("key", ["model", "optimizer", "estimator", "anything"])
def test_a_run_folder_that_names_a_class_of_no_run_is_refused(run, target, key):
    node = {"nested": [{"_target_": target}], "_target_": "vae.model.CategoricalVAE"}
    change_config(run, **{key: node})
    with pytest.raises(UserError, match="is not a class that run folders may use"):
        vae.load(run)


@pytest.mark.parametrize(
    "changed",
    [
        {"data__root": "${oc.env:HOME}"},
        {"model__networks": "${oc.create:{_target_: os.system}}"},
        {"anything": {"nested": ["${seed}"]}},
        {"anything": {"${seed}": 1}},
    ],
)
def test_a_run_folder_with_an_interpolation_is_refused(run, changed):
    change_config(run, **changed)
    with pytest.raises(UserError, match="run folders may not use interpolations"):
        vae.load(run)


@pytest.mark.parametrize("text", ["", "a: [", "[]", "3", "data: 3", "\x00", "model: {a: ${b}}"])
def test_a_damaged_configuration_is_refused_in_one_line(run, text):
    (run / CONFIG).write_text(text)
    with pytest.raises(UserError) as caught:
        vae.load(run)
    assert str(caught.value).count("\n") == 0


def test_a_folder_without_a_configuration_is_no_run_folder(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        SavedRun(tmp_path)
