"""The means over seeds that TensorBoard shows for compared runs."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.comparison.runs_table import Rows, run, runs_table
from tests.helpers import read_scalars, subfolders
from vae.comparison.means import write_means
from vae.comparison.table import compare
from vae.utils.errors import UserError


def write(folder: Path, runs: list[Rows], elbos: list[list[float]]) -> None:
    """Write the means of runs that have a given ELBO at the steps 40, 80, ..."""
    table: pd.DataFrame = runs_table(*runs)
    table["run", "folder"] = [str(folder / "runs" / str(number)) for number in range(len(runs))]
    for run_folder, values in zip(table["run", "folder"], elbos, strict=True):
        Path(run_folder).mkdir(parents=True, exist_ok=True)
        lines = [
            {"step": 40 * epoch, "elbo/train": elbo, "rate/train": -elbo, "objective/loss": 1.0}
            for epoch, elbo in enumerate(values, start=1)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (Path(run_folder) / "metrics.jsonl").write_text(text)
    write_means(compare(table), folder / "means")


def test_a_group_has_the_mean_and_the_band_of_its_runs(tmp_path):
    write(tmp_path, [run(seed=0), run(seed=1)], [[-4.0, -2.0], [-8.0, -4.0]])
    curves = read_scalars(tmp_path / "means" / "reinmax")
    assert curves["elbo/train"] == [(40, -6.0), (80, -3.0)]
    assert curves["evaluation/rate/train"] == [(40, 6.0), (80, 3.0)]
    for end, sign in (("low", -1), ("high", 1)):
        values = dict(curves[f"seeds/elbo/train_{end}"])
        assert values == pytest.approx({40: -6 + sign * 8**0.5, 80: -3 + sign * 2**0.5})


def test_each_group_is_a_run_of_its_own(tmp_path):
    runs = [run("reinmax"), run("disarm"), run("disarm", seed=1)]
    write(tmp_path, runs, [[-1.0], [-2.0], [-4.0]])
    assert subfolders(tmp_path / "means") == ["disarm", "reinmax"]
    assert read_scalars(tmp_path / "means" / "disarm")["elbo/train"] == [(40, -3.0)]
    alone = read_scalars(tmp_path / "means" / "reinmax")
    assert set(alone) == {"elbo/train", "evaluation/rate/train"}  # one run has no band


def test_a_step_has_the_mean_of_the_runs_that_reached_it(tmp_path):
    """A run without improvement ends early."""
    write(tmp_path, [run(seed=0), run(seed=1)], [[-4.0, -2.0], [-8.0]])
    curves = read_scalars(tmp_path / "means" / "reinmax")
    assert curves["elbo/train"] == [(40, -6.0), (80, -2.0)]
    assert [step for step, _ in curves["seeds/elbo/train_low"]] == [40]


def test_runs_that_do_not_count_are_left_out(tmp_path):
    runs = [run(seed=0), run(seed=1, status="diverged", elbo=None)]
    write(tmp_path, runs, [[-4.0], [-8.0]])
    assert read_scalars(tmp_path / "means" / "reinmax")["elbo/train"] == [(40, -4.0)]


def test_a_second_call_replaces_the_means_of_the_first(tmp_path):
    write(tmp_path, [run(seed=0), run(seed=1)], [[-1.0, -1.0, -1.0], [-3.0, -3.0, -3.0]])
    write(tmp_path, [run(seed=0), run(seed=1)], [[-5.0, -4.0], [-5.0, -6.0]])
    curves = read_scalars(tmp_path / "means" / "reinmax")
    assert curves["elbo/train"] == [(40, -5.0), (80, -5.0)]


def test_means_of_groups_that_no_longer_exist_are_removed(tmp_path):
    """A sweep that is repeated with another setting has other labels."""
    write(tmp_path, [run("reinmax"), run("disarm")], [[-1.0], [-2.0]])
    of_the_user = [
        tmp_path / "means" / name for name in ("disarm/notes.txt", "other/x.tfevents.y")
    ]
    for file in of_the_user:
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "means" / "reinmax").rename(elsewhere)
    (tmp_path / "means" / "link").symlink_to(elsewhere)
    write(tmp_path, [run("rebar")], [[-3.0]])
    write(tmp_path, [run("muprop")], [[-3.0]])
    assert subfolders(tmp_path / "means") == ["disarm", "link", "muprop", "other"]
    assert all(file.exists() for file in of_the_user)
    assert len([*elsewhere.iterdir()]) == 1


def test_means_of_an_earlier_data_set_are_removed_if_there_are_several_data_sets(tmp_path):
    write(tmp_path, [run()], [[-1.0]])
    write(tmp_path, [run(data="digits"), run(data="letters")], [[-1.0], [-2.0]])
    assert subfolders(tmp_path / "means") == ["digits", "letters"]


def test_data_sets_have_folders_of_their_own(tmp_path):
    write(tmp_path, [run(data="digits, m = 5"), run(data="letters")], [[-4.0], [-8.0]])
    folders = {"digits, m = 5": -4.0, "letters": -8.0}
    assert subfolders(tmp_path / "means") == [*folders]
    for name, elbo in folders.items():
        curves = read_scalars(tmp_path / "means" / name / "reinmax")
        assert curves["elbo/train"] == [(40, elbo)]


def test_labels_that_are_no_file_names_are_changed_and_stay_different(tmp_path):
    options = ["a/b", "a:b", "../../x", "x" * 300]
    runs = [run(option=option) for option in options]
    write(tmp_path, runs, [[-1.0], [-2.0], [-3.0], [-4.0]])
    names = subfolders(tmp_path / "means")
    assert len(names) == 4 and {"option=a_b", "option=a_b_1"} <= set(names)
    values = {read_scalars(tmp_path / "means" / name)["elbo/train"][0][1] for name in names}
    assert values == {-1.0, -2.0, -3.0, -4.0}
    assert subfolders(tmp_path) == ["means", "runs"]


def test_runs_without_metrics_have_no_mean(tmp_path):
    runs = [run("reinmax"), run("disarm", seed=0), run("disarm", seed=1)]
    write(tmp_path, runs, [[], [], [-4.0]])
    assert subfolders(tmp_path / "means") == ["disarm"]
    assert read_scalars(tmp_path / "means" / "disarm")["elbo/train"] == [(40, -4.0)]


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    """TensorBoard would discard the curves of the run."""
    folder = tmp_path / "means" / "reinmax"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    with pytest.raises(UserError, match="holds a run"):
        write(tmp_path, [run(seed=0)], [[-4.0]])
    assert [file.name for file in folder.iterdir()] == ["config.yaml"]
