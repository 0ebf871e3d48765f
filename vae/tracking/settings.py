"""The settings of a run in TensorBoard: its row in the HParams tab, and its configuration."""

import io
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, text

from vae.utils.files import write_atomically

SETTINGS = "events.out.tfevents.0.settings"
"""The event file with the settings. Each start of a run replaces it.

TensorBoard keeps the first settings that it reads of a run, so an older file must not remain. The
name sorts before all other event files, whose names contain the time, because some readers of
TensorBoard read the files in this order and never return to an earlier one.
"""

MAIN_SETTINGS = (
    *("estimator", "estimator.temperature", "optimizer.lr"),
    *("latents", "categories", "seed"),
)
"""The settings that come first in the HParams tab, which shows five columns by default."""


def write_settings(folder: Path, config: str, settings: Mapping[str, object]) -> None:
    """Show the settings of a run in TensorBoard, in place of those of an earlier start.

    Only what concerns this run is written. A summary of the experiment is left out: TensorBoard
    would take the columns of the HParams tab for all runs from the summary of a single run.
    Without it, the tab has a column for each setting and each scalar of any run.

    Args:
        folder: The run folder.
        config: The configuration as YAML, which is shown as a text.
        settings: All settings on one level, by dotted keys.

    Raises:
        OSError: The folder cannot be written to.
    """
    _, start_info, _ = hparams(_column_names(settings), {})
    fixed_width = "\n".join("    " + line for line in config.splitlines())
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in (
        Event(file_version="brain.Event:2"),
        Event(summary=start_info),
        Event(summary=text("config", fixed_width)),
    ):
        event.wall_time = time.time()
        writer.write(event.SerializeToString())
    scratch = folder / ".settings"  # a crash must not leave a second *.tfevents.* with settings
    write_atomically(scratch, content.getvalue())
    scratch.replace(folder / SETTINGS)


def _column_names(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings under the names of their columns in the HParams tab.

    The tab shows settings that differ between runs first, and orders both kinds by their names. A
    run does not know what differs. All names but those of the main settings begin with
    `settings.`, so that they come after the main settings in the alphabet.

    The class of a group within a group KEY is named KEY._target_, as in config.yaml. In other
    runs, KEY can be a number: `optimizer.lr` is a number or a schedule. TensorBoard cannot sort a
    column that has both numbers and names.
    """
    parents = {key.rpartition(".")[0] for key in settings}
    columns = {}
    for key, value in settings.items():
        group, _, last = key.rpartition(".")
        if group and last in MAIN_SETTINGS and settings.get(last) == value:
            continue  # model.latents repeats latents, and would differ whenever latents does
        name = f"{key}._target_" if "." in key and key in parents else key
        columns[name if key in MAIN_SETTINGS else f"settings.{name}"] = value
    return columns
