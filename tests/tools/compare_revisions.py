"""Checks that this checkout trains and evaluates exactly as an earlier revision does.

    python tests/tools/compare_revisions.py 1df9605 --folder /tmp/compared

Both revisions run the same commands on this machine, on `data=mnist_5k`: every estimator, every
objective, dynamic binarisation, two replicas, and a run that is killed and resumed. Three things
must then be equal: the bytes of every `metrics.jsonl`, the SHA-256 of the weights in `best.pt` and
`last.pt`, and the tables of `evaluate.py` without the columns that hold times.

`--folder` keeps clones, runs and records, so that a second call only runs what is missing. Delete
`FOLDER/new` to run this checkout again.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
COMMON = ["data=mnist_5k", "training.epochs=2", "latents=4", "categories=8", "device=cpu"]
OBJECTIVES = {
    "importance_weighted": ["estimator=reinmax", "estimator.samples=4"],
    "vimco": [],
    "reweighted_wake_sleep": [],
    "concrete": [],
}
TIMES = {"seconds"}
RANDOM_WEIGHTS = {"relax", "reinforce_learned_baseline"}
"""Estimators with weights that `--gradients` draws unseeded, so that each call differs."""


def commands(checkout: Path) -> dict[str, list[str]]:
    """Return the overrides of every run to record, by the name of its folder."""
    runs = {}
    for file in sorted((checkout / "configs" / "estimator").glob("*.yaml")):
        runs[f"estimator_{file.stem}"] = [f"estimator={file.stem}"]
    for name, overrides in OBJECTIVES.items():
        if not (checkout / "configs" / "objective" / f"{name}.yaml").exists():
            continue  # an earlier revision has fewer objectives
        runs[f"objective_{name}"] = [f"objective={name}", *overrides]
    runs["dynamic"] = ["data.binarize=dynamic"]
    runs["replicas"] = ["seeds=2"]
    runs["schedules"] = [
        *("estimator/temperature=linear", "optimizer=radam", "optimizer/lr=cosine"),
        *("optimizer.lr.warmup=10", "objective/beta=linear", "training.clip=1.0"),
        *("training.patience=1", "tracking.gradient_every=1", "model.prior=learned"),
    ]
    runs["conv_sgd_bf16"] = ["model=conv", "optimizer=sgd", "training.precision=bf16"]
    runs["resumed"] = ["data.binarize=dynamic", "estimator=relax", "training.epochs=3"]
    return runs


def train(checkout: Path, folder: Path, overrides: list[str], kill: bool) -> None:
    """Run `train.py` in one thread; with `kill`, end it by SIGKILL after an epoch and resume."""
    command = [sys.executable, str(checkout / "train.py"), *COMMON, *overrides]
    options = {
        "cwd": folder.parent,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
    }
    command.append(f"hydra.run.dir={folder.name}")
    if kill:
        process = subprocess.Popen(command, **options)
        metrics = folder / "metrics.jsonl"
        while process.poll() is None and not (folder / "last.pt").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if len(metrics.read_bytes().splitlines()) >= 3:
            raise RuntimeError("the run ended before it could be killed")
    done = subprocess.run(command, **options, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder.name} of {checkout}: {done.stderr.decode()}")


def weights(checkpoint: Path) -> str:
    """Return the SHA-256 of the names and values of all tensors of a checkpoint's objective."""
    state = torch.load(checkpoint, weights_only=True)["objective"]
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        sha.update(state[name].contiguous().numpy().tobytes())
    return sha.hexdigest()


def table(checkout: Path, cwd: Path, *arguments: str) -> list[list[str]]:
    """Return the csv table that `evaluate.py` prints, without the columns that hold times."""
    command = [sys.executable, str(checkout / "evaluate.py"), *arguments, "--format", "csv"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    rows = [row for row in csv.reader(io.StringIO(done.stdout)) if row]
    kept = [index for index, name in enumerate(rows[0]) if name not in TIMES]
    return [[row[index] for index in kept] for row in rows]


def record(checkout: Path, folder: Path) -> dict[str, object]:
    """Run everything that is not yet in `folder`, and return what must be equal."""
    folder.mkdir(parents=True, exist_ok=True)

    def run(name: str, overrides: list[str]) -> None:
        finished = folder / name / "record_finished"
        if not finished.exists():
            train(checkout, folder / name, overrides, kill=name == "resumed")
            finished.touch()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(run, *item) for item in commands(checkout).items()]:
            future.result()
    names = sorted(commands(checkout))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    one = ("estimator_straight_through", "--gradients", "--estimators", "all", "--draws", "40")
    return {
        "metrics": {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
            if file.name == "metrics.jsonl"
        },
        "weights": {
            str(file.relative_to(folder)): weights(file)
            for file in files
            if file.name in ("best.pt", "last.pt")
        },
        "groups": table(checkout, folder, *names, "--baseline", "disarm"),
        "last": table(checkout, folder, *names, "--model", "last"),
        "runs": table(checkout, folder, *names, "--runs"),
        "gradients": [row for row in table(checkout, folder, *one) if not RANDOM_WEIGHTS & {*row}],
        "own_gradient": table(checkout, folder, "schedules", "--gradients", "--draws", "40"),
    }


def main() -> int:
    """Compare the two revisions and print what differs; return 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("revision", help="the earlier revision, as git names it")
    parser.add_argument("--folder", type=Path, required=True, help="for clones, runs and records")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    clone, old_record = folder / "clone", folder / f"{arguments.revision}.json"
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "-C", str(clone), "checkout", "-q", arguments.revision], check=True)
    if not old_record.exists():
        old_record.write_text(json.dumps(record(clone, folder / "old"), indent=1))
    old = json.loads(old_record.read_text())
    new = json.loads(json.dumps(record(ROOT, folder / "new")))
    (folder / "new.json").write_text(json.dumps(new, indent=1))
    different = []
    for part, before in old.items():
        after = new[part]
        if isinstance(before, dict):
            keys = [key for key in before | after if before.get(key) != after.get(key)]
            different += [f"{part}: {key}" for key in keys]
            print(f"{part}: {len(before)} recorded, {len(keys)} differ")
        else:
            differ = [
                index
                for index, rows in enumerate(zip(before, after, strict=False))
                if len({*map(tuple, rows)}) > 1
            ]
            same = before == after
            different += [] if same else [f"{part}: rows {differ}, {len(before)} and {len(after)}"]
            print(f"{part}: a table of {len(before)} rows, {'equal' if same else 'different'}")
    print("\n".join(different) or "equal")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
