"""Compare finished runs: `python evaluate.py outputs/RUN_OR_SWEEP [...]`.

The command is in vae/cli/evaluate.py.
"""

import sys

from vae.cli.evaluate import main
from vae.utils.stdout import flush_quietly

if __name__ == "__main__":
    with flush_quietly():
        sys.exit(main())
