"""Measure the seconds of a training step with each estimator and objective, on one thread.

    python tests/benchmarks/estimators.py --size 4x8
    python tests/benchmarks/estimators.py --size 8x64 --choices reinmax muprop objective=vimco

The networks are those of the ReinMax protocol, in float32, with batches of 100 images of
mnist_5k. A round measures every choice once, in an order that is reversed in the next round. The
table has the CPU time of a step, which other work on the machine changes less than the time of the
clock: the minimum and the median over rounds, and the ratio of the minimum to that of the first
choice. `exact` leaves out codes whose probability is below rounding error, and an untrained model
has none, so its time here is an upper bound.
"""

import argparse
import time
from statistics import median

import torch
from common import hardware, hardware_line, table

from vae.config.build import build_experiment
from vae.config.compose import compose_config
from vae.data import Batches
from vae.training.loop import optimize
from vae.training.stacked import StackedObjectives
from vae.training.step import EagerStep

CHOICES = (
    *("straight_through", "straight_through_gumbel", "gapped_straight_through", "gumbel_softmax"),
    *("decoupled_straight_through_gumbel", "gumbel_rao", "reinmax", "reinmax_rao", "reinmax_cv"),
    *("redge", "reindge", "minimum_variance", "reinforce_moving_average", "muprop"),
    *("reinforce_learned_baseline", "disarm", "reinforce", "disarm estimator.samples=4"),
    *("muprop estimator.samples=4 estimator.coefficient=adaptive", "rebar", "relax"),
    *("local_expectation", "objective=vimco", "objective=reweighted_wake_sleep"),
    "objective=concrete",
)
WARM_UP_STEPS = 20


def build_step(choice: str, size: str) -> EagerStep:
    """Return the training step of a choice, and take its first steps."""
    first, *more = choice.split()
    overrides = [first if "=" in first else f"estimator={first}", *more]
    overrides += ["data=mnist_5k", f"experiment=reinmax_{size}", "training.epochs=160"]
    run = build_experiment(compose_config(overrides)).runs[0]
    batches = Batches(run.source.load(torch.device("cpu")), 100, [torch.Generator()])
    batches.shuffle()
    objectives = StackedObjectives([run.objective], [run.optimizer])
    step = EagerStep(optimize, objectives, batches, finite_check="loss")
    for number in range(WARM_UP_STEPS):
        step(number, number)
    return step


def cpu_seconds(step: EagerStep, steps: int) -> float:
    """Return the CPU seconds of a step."""
    started = time.process_time()
    for number in range(steps):
        step(number % WARM_UP_STEPS, number)
    return (time.process_time() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="4x8", help="one of the sizes of experiment=reinmax_*")
    parser.add_argument("--choices", nargs="+", default=CHOICES, help="estimators or objectives")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps of each choice in a round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    steps = {choice: build_step(choice, arguments.size) for choice in arguments.choices}
    seconds: dict[str, list[float]] = {choice: [] for choice in steps}
    for number in range(arguments.rounds):
        for choice in list(steps)[:: -1 if number % 2 else 1]:
            seconds[choice].append(cpu_seconds(steps[choice], arguments.steps))
    reference = min(seconds[arguments.choices[0]])
    rows = [
        [choice, f"{1000 * min(s):.2f}", f"{1000 * median(s):.2f}", f"{min(s) / reference:.2f}"]
        for choice, s in seconds.items()
    ]
    print(hardware_line(hardware()))
    print(table([arguments.size, "ms, minimum", "ms, median", "ratio"], rows))


if __name__ == "__main__":
    main()
