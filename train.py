"""Trains a categorical VAE: `python train.py estimator=straight_through data=mnist_5k`.

`python train.py --help` lists the options, and every key with its default. With `-m`, it trains
the runs of a sweep. What a run does is in `vae/experiment.py`.
"""

import sys

from vae.cli.train import main
from vae.utils.stdout import flush_quietly

if __name__ == "__main__":
    with flush_quietly():
        sys.exit(main())
