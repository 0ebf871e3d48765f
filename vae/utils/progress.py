"""The progress bar of training, which a job of a parallel sweep reports to the sweep instead."""

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from tqdm import tqdm

if TYPE_CHECKING:
    Bar = tqdm[NoReturn]
else:
    Bar = tqdm


class ReportedBar(Bar):
    """A progress bar that writes its numbers to a file instead of drawing them."""

    report: ClassVar[Path | None] = None
    """The file to which the bars of this process write; None if they are drawn."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write the numbers. An error is ignored, because training does not depend on them."""
        numbers = {"n": self.n, "initial": self.initial, "total": self.total}
        shown = {"rate": self.format_dict["rate"], "text": self.postfix}
        with suppress(OSError):
            Path(str(self.report)).write_text(json.dumps(numbers | shown))


def progress_bar(total: int, initial: int) -> Bar:
    """Return a bar of training steps.

    It is a `ReportedBar` if `ReportedBar.report` is set. Otherwise it is drawn on stderr, or
    disabled if stderr is not a terminal.

    Args:
        total: The step at which training ends.
        initial: The step from which training resumes.
    """
    options: dict[str, Any] = {"total": total, "initial": initial, "unit": " steps"}
    if ReportedBar.report is None:
        return tqdm(**options, disable=None, dynamic_ncols=True)
    return ReportedBar(**options, file=io.StringIO(), mininterval=0.5)
