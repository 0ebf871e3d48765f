"""The example scripts run as the README says, and train."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import torch

from vae.estimators import Exact

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"(\w+) +step +(\d+) +loss +([\d.]+) nats per image")


def test_the_loss_of_the_example_accepts_codes_that_all_images_share():
    example = runpy.run_path(str(ROOT / "examples" / "one_training_step.py"))
    model, images = example["Autoencoder"](), torch.rand(3, example["PIXELS"])
    logits = model.encode(images)
    exact = Exact(limit=8**4)(logits, lambda codes: model.loss(images, codes), 0)
    assert exact.shape == (3,)


def test_one_training_step_prints_losses_that_fall():
    process = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "one_training_step.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    losses: dict[str, list[float]] = {}
    for line in process.stdout.splitlines():
        name, _, loss = LINE.fullmatch(line).groups()
        losses.setdefault(name, []).append(float(loss))
    assert set(losses) == {"ReinMax", "REINFORCE"}
    for curve in losses.values():
        assert len(curve) == 5
        assert curve[-1] < 0.7 * curve[0]
