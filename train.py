"""Trains a categorical VAE: `python train.py estimator=straight_through data=mnist_5k`.

`python train.py --help` lists the options, and every key with its default. With `-m`, it trains
the runs of a sweep. What a run does is in `vae/experiment.py`.
"""

from vae.cli.train import main
from vae.utils.stdout import run_command

if __name__ == "__main__":
    run_command("train.py", main)
