"""The loop, on a tiny data set of 4 x 4 pictures."""

import json
import math
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from vae import checkpoint
from vae.data import DataSet, Split
from vae.estimators import Exact, StraightThrough, StraightThroughGumbel
from vae.model import CategoricalVAE
from vae.networks import MLP
from vae.objective import NegativeELBO
from vae.optimizers import Adam
from vae.schedules import Linear
from vae.tracking import Tracker, Tracking
from vae.trainee import Diverged, Run
from vae.training import Training, train


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def split(images: int) -> Split:
    """Ten patterns, one a class."""
    patterns = torch.rand(10, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    labels = torch.arange(images) % 10
    return Split(patterns[labels].to(torch.uint8) * 255, labels)


def data(valid: int = 20, redraw: bool = False) -> DataSet:
    return DataSet("patterns", (4, 4), split(60), split(valid), split(20), redraw, True)


def objective(estimator=None, beta=1.0) -> NegativeELBO:
    torch.manual_seed(2)
    networks = MLP(encoder_sizes=[16], decoder_sizes=[16], activation="relu")
    model = CategoricalVAE(networks, latents=3, categories=4, image_shape=(4, 4))
    return NegativeELBO(model, estimator or StraightThroughGumbel(temperature=0.5), beta=beta)


def adam(lr=1e-2) -> Adam:
    return Adam(lr=lr, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0)


def trained(folder: Path, objective: NegativeELBO, data: DataSet, optimizer=None, **given):
    """Runs the loop; gives what it returns and the lines of metrics.jsonl."""
    ((done, lines),) = together([(folder, objective, optimizer or adam(), 0)], data, **given)
    if isinstance(done, Diverged):
        raise done
    return done, lines


def together(replicas: list[tuple], data: DataSet, **given) -> list[tuple]:
    """Of each (folder, objective, optimizer, seed) what the loop returns, and its lines."""
    settings = {"epochs": 3, "batch_size": 20, "steps": None, "clip": None, "patience": None}
    tracking = Tracking(
        pictures_every=given.pop("pictures_every", 0),
        pictures=4,
        train_images=given.pop("train_images", 30),
        projected=0,
        gradient_every=given.pop("gradient_every", 0),
    )
    training = Training(**settings | {"precision": "float32"} | given)
    torch.manual_seed(3)
    folders = [replica[0] for replica in replicas]
    with ExitStack() as stack:
        runs, steps = [], checkpoint.steps(folders)
        for (folder, objective, optimizer, seed), step in zip(replicas, steps, strict=True):
            folder.mkdir(exist_ok=True)
            tracker = stack.enter_context(Tracker(folder, step))
            runs.append(Run(objective, optimizer, tracker, folder, seed))
        done = train(runs, data, training, tracking)
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in folders]
    return [
        (outcome, [json.loads(line) for line in own])
        for outcome, own in zip(done, lines, strict=True)
    ]


def weights(objective: NegativeELBO) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in objective.parameters()])


def test_what_is_drawn_and_evaluated_changes_no_training(tmp_path):
    plain, drawn = objective(), objective()
    _, a = trained(tmp_path / "a", plain, data())
    _, b = trained(tmp_path / "b", drawn, data(), pictures_every=1, train_images=7)
    assert [line["objective/loss"] for line in a] == [line["objective/loss"] for line in b]
    assert torch.equal(weights(plain), weights(drawn))


def test_it_learns(tmp_path):
    _, lines = trained(tmp_path, objective(Exact(limit=64)), data(), epochs=60)
    assert lines[-1]["elbo/train"] > lines[0]["elbo/train"] + 4
    assert lines[-1]["elbo/train"] <= 0


def test_steps_end_training_inside_an_epoch(tmp_path):
    done, lines = trained(tmp_path, objective(), data(), epochs=5, steps=4)
    assert (done.steps, done.epochs) == (4, 2)
    assert [line["step"] for line in lines] == [3, 4]


def test_schedules_follow_the_global_step(tmp_path):
    ramp = Linear(start=1.0, end=0.1, steps=9)
    estimator = StraightThrough(temperature=ramp)
    lr = Linear(start=1e-2, end=0.0, steps=9)
    beta = Linear(start=0.0, end=1.0, steps=9)
    _, lines = trained(tmp_path, objective(estimator, beta), data(), adam(lr))
    for line in lines:
        for name, schedule in {"temperature": ramp, "lr": lr, "beta": beta}.items():
            assert line[f"schedule/{name}"] == pytest.approx(schedule(line["step"]))
    assert [line["step"] for line in lines] == [3, 6, 9]


def test_a_learning_rate_of_zero_changes_nothing(tmp_path):
    still = objective()
    before = weights(still)
    trained(tmp_path, still, data(), adam(0.0))
    assert torch.equal(weights(still), before)


def test_best_is_the_best_validation_elbo_and_last_the_last(tmp_path):
    done, lines = trained(tmp_path, objective(), data(), epochs=8)
    valid = [line["elbo/valid"] for line in lines]
    assert done.best_epoch == 1 + valid.index(max(valid))
    assert checkpoint.load(tmp_path, "best")["epoch"] == done.best_epoch
    assert checkpoint.load(tmp_path, "last")["epoch"] == 8


def test_without_validation_there_is_no_best(tmp_path):
    done, lines = trained(tmp_path, objective(), data(valid=0), pictures_every=1)
    assert done.best_epoch is None and not checkpoint.path(tmp_path, "best").exists()
    assert "elbo/valid" not in lines[0] and "latent/perplexity" in lines[0]


def test_patience_ends_training(tmp_path):
    done, lines = trained(tmp_path, objective(), data(), adam(0.0), epochs=50, patience=3)
    assert done.best_epoch == 1 and done.epochs == len(lines) == 4


def test_clipping_bounds_the_step(tmp_path):
    """One plain gradient step of rate 1 is exactly as long as its clipped gradient."""

    class Descent(Adam):
        def build(self, parameters, on_device=False):
            return torch.optim.SGD(parameters, lr=1.0)

    clipped = objective()
    before = weights(clipped)
    sgd = Descent(lr=1.0, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0)
    _, lines = trained(tmp_path, clipped, data(), sgd, clip=1e-3, steps=1)
    assert (weights(clipped) - before).norm() == pytest.approx(1e-3, rel=1e-3)
    assert lines[0]["gradient/norm"] > 1e-2


def test_a_nan_stops_with_where_it_was(tmp_path):
    with pytest.raises(
        Diverged, match="no number at step 1 of epoch 1: lr 1e.30, .*largest logit"
    ):
        trained(tmp_path, objective(beta=3e38), data(), adam(1e30))


class Blowing(NegativeELBO):
    """Its loss is no number at one step."""

    at = 4

    def forward(self, x, step):
        terms = super().forward(x, step)
        return terms._replace(loss=terms.loss * math.nan) if step == self.at else terms


def blowing() -> Blowing:
    plain = objective()
    return Blowing(plain.model, plain.estimator)


def test_a_bad_step_ends_the_run_before_it_does_harm(tmp_path):
    broken = blowing()
    with pytest.raises(Diverged, match=r"at step 4 of epoch 2: .*last.pt is of step 3"):
        trained(tmp_path, broken, data())
    assert all(p.isfinite().all() for p in broken.parameters())
    assert checkpoint.load(tmp_path, "last")["step"] == 3


def test_a_bad_step_can_be_skipped_and_is_counted(tmp_path):
    broken = blowing()
    _, lines = trained(tmp_path, broken, data(), on_nan="skip")
    assert [line.get("objective/skipped", 0) for line in lines] == [0, 1, 0]
    assert all(math.isfinite(value) for line in lines[:1] + lines[2:] for value in line.values())
    assert math.isfinite(lines[1]["objective/loss"]) and math.isfinite(lines[1]["elbo/train"])


def test_skipping_where_nothing_is_bad_changes_nothing(tmp_path):
    a, b = objective(), objective()
    trained(tmp_path / "a", a, data())
    trained(tmp_path / "b", b, data(), on_nan="skip")
    assert torch.equal(weights(a), weights(b))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_are_no_nan(tmp_path, size):
    huge = objective()
    with torch.no_grad():
        huge.model.encoder[-1].weight.mul_(size)
    _, lines = trained(tmp_path, huge, data(), adam(1e-4))
    assert all(math.isfinite(value) for line in lines for value in line.values())


def test_bf16_is_for_the_networks_alone(tmp_path):
    mixed = objective()
    _, lines = trained(tmp_path, mixed, data(), precision="bf16")
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    assert mixed.model.precision is None  # what is measured is measured in float32


def test_images_are_drawn_anew_where_the_data_says_so(tmp_path):
    grey = data(redraw=True)
    grey.train.images.fill_(128)
    _, lines = trained(tmp_path, objective(), grey)
    assert all(math.isfinite(line["elbo/train"]) for line in lines)
