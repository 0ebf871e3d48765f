"""Write the means over seeds of compared runs, for TensorBoard."""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from vae.comparison.table import Comparison
from vae.runs.folder import find_runs
from vae.tracking import BANDS, ReplicaMeanWriter
from vae.tracking.metrics import read_metrics
from vae.utils.errors import UserError

_LONGEST_NAME = 200  # file systems allow 255 bytes

_SUFFIX = ".means"
"""The end of the name of an event file with means, by which a later call finds the file."""


def write_means(comparisons: Mapping[str, Comparison], folder: Path) -> None:
    """Write one TensorBoard run per group of runs, with the means of ELBO, rate and distortion.

    The runs of a group differ in their seed alone. At each step, the mean and the band of one
    standard deviation are those of the runs that were evaluated at this step. A group of one run
    has no band. The TensorBoard runs are named after the groups. If there are several data sets,
    there is a folder for each of them.

    Args:
        comparisons: The comparison of each data set, by title.
        folder: Where the TensorBoard runs are written. Means of an earlier call are replaced, and
            the means of groups that no longer exist are removed.

    Raises:
        UserError: The metrics of a run can no longer be read, or there is a run where the means
            of a group would be written.
        OSError: A file cannot be written.
    """
    written: set[Path] = set()
    parents = {folder}
    for title, comparison in comparisons.items():
        parent = folder / _file_name(title) if len(comparisons) > 1 else folder
        parents.add(parent)
        for label in comparison.labels():
            runs = comparison.runs_of(label)["run", "folder"]
            metrics = pd.concat([read_metrics(Path(run)) for run in runs])
            if metrics.empty:  # somebody has removed the files
                continue
            group_folder = parent / _file_name(label)
            if group_folder in written:  # the labels differ in characters that were replaced
                group_folder = parent / f"{group_folder.name}_{len(written)}"
            written.add(group_folder)
            if find_runs(group_folder):  # TensorBoard would no longer show its curves
                raise UserError(f"{group_folder} holds a run; write the means to another folder")
            for file in group_folder.glob(f"*{_SUFFIX}"):
                file.unlink()
            names = [name for name in BANDS if name in metrics]
            with ReplicaMeanWriter(group_folder, suffix=_SUFFIX) as writer:
                for step in sorted(metrics["step"].unique()):
                    values = metrics.loc[metrics["step"] == step, names].to_numpy().tolist()
                    lines = [dict(zip(names, row, strict=True)) for row in values]
                    writer.log_scalars(int(step), lines)
    for parent in parents:
        _remove_means(parent, written)


def _remove_means(parent: Path, kept: set[Path]) -> None:
    """Remove the folders in a folder that hold means and nothing else, except those to keep."""
    for group_folder in {file.parent for file in parent.glob(f"*/*{_SUFFIX}")} - kept:
        files = list(group_folder.iterdir())
        if all(file.name.endswith(_SUFFIX) for file in files) and not group_folder.is_symlink():
            for file in files:
                file.unlink()
            group_folder.rmdir()


def _file_name(text: str) -> str:
    """Return a text with `_` in place of everything that could harm the name of a file."""
    return re.sub(r"[^\w .,=+\[\]()-]|^\.", "_", text, flags=re.ASCII)[:_LONGEST_NAME]
