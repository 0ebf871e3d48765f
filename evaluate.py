"""Compare finished runs: `python evaluate.py outputs/RUN_OR_SWEEP [...]`.

The command is in vae/cli/evaluate.py.
"""

from vae.cli.evaluate import main
from vae.utils.stdout import run_command

if __name__ == "__main__":
    run_command("evaluate.py", main)
