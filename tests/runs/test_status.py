"""The status and the score of a run, from the files in its folder."""

import json

import pytest

from tests.helpers import read_json
from vae.runs.folder import STATUS, SUMMARY
from vae.runs.status import RunStatus, read_status, score


@pytest.mark.parametrize(
    "summary, expected",
    [
        ('{"best_epoch": 2, "best_elbo": -101.5, "train": {"elbo": -99.0}}', -101.5),
        ('{"best_epoch": null, "best_elbo": null, "train": {"elbo": -99.0}}', -99.0),
        ('{"best_epoch": null, "best_elbo": null, "train": {"elbo": NaN}}', None),
        ('{"best_epoch": 2, "train": {"elbo": -99.0}}', None),
        ("", None),
        (None, None),
    ],
)
def test_the_score_is_the_best_validation_elbo_or_else_the_training_elbo(
    tmp_path, summary, expected
):
    if summary is not None:
        (tmp_path / SUMMARY).write_text(summary)
    assert score(tmp_path) == expected


def test_the_score_of_replicas_is_their_mean(tmp_path):
    for seed, elbo in ((0, -100.0), (1, -102.0)):
        (tmp_path / f"seed_{seed}").mkdir()
        summary = {"best_epoch": 1, "best_elbo": elbo}
        (tmp_path / f"seed_{seed}" / SUMMARY).write_text(json.dumps(summary))
    assert score(tmp_path) == -101.0


@pytest.mark.parametrize(
    ("error", "expected", "reason"),
    [(KeyboardInterrupt(), "interrupted", None), (ValueError("a reason"), "failed", "a reason")],
)
def test_runs_without_a_final_status_are_interrupted_or_failed(tmp_path, error, expected, reason):
    folders = [tmp_path / name for name in ("finished", "unfinished")]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(type(error)), RunStatus(folders) as status:
        assert [read_status(folder) for folder in folders] == ["running", "running"]
        status.set(folders[0], "finished")
        raise error
    assert read_status(folders[0]) == "finished"
    assert read_json(folders[1] / STATUS) == {"status": expected, "why": reason}


@pytest.mark.parametrize("content", ["", "[]", '{"status": 3}', None])
def test_a_damaged_or_missing_status_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / STATUS).write_text(content)
    assert read_status(tmp_path) is None
