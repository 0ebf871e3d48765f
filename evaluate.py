"""Prints the test bounds of finished runs: `python evaluate.py outputs/RUN [RUN ...]`.

The model is rebuilt from its run folder alone. Every bound is of the discrete model, in nats per
image; the noise is the same for every run.
"""

import argparse
import json
import sys
from pathlib import Path

# No torch up here: --help is asked for more often than anything else.


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--model", choices=["best", "last"], help="which one; by default the best that there is"
    )
    parser.add_argument(
        "--importance-samples",
        type=count,
        default=100,
        metavar="M",
        help="samples of the importance-weighted bound (default: 100)",
    )
    parser.add_argument(
        "--data-root", metavar="FOLDER", help="where the images are now, if not where they were"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    return parser.parse_args()


def count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError
    return number


def main() -> int:
    arguments = parse()
    import torch

    torch.set_flush_denormal(True)

    from vae import comparison, door
    from vae.evaluation import bounds
    from vae.validation import UserError

    measured: dict[str, dict[str, comparison.Measured]] = {}  # by data set: never in one table
    status = 0
    for run in arguments.runs:
        try:
            model = door.load(run, arguments.model)
            data = door.load_data(run, arguments.data_root)
        except UserError as error:
            print(f"evaluate.py: {error}", file=sys.stderr)
            status = 2
            continue
        row = bounds(model, data.test.images, arguments.importance_samples)
        measured.setdefault(comparison.title(data), {})[str(run)] = row
    if arguments.json:
        print(json.dumps(measured, indent=2))
    else:
        for title, rows in measured.items():
            print(f"\n{comparison.table(title, rows)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
