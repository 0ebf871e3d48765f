"""Codes that do not depend on the image are noticed after an epoch, and named."""

import logging

import pytest
import torch

from tests.helpers import (
    ReplicaParts,
    adam,
    pattern_data,
    pattern_objective,
    train_alone,
    train_replicas,
)
from vae.estimators import StraightThroughArgmax
from vae.evaluation import evaluate
from vae.objective import NegativeELBO
from vae.training import monitor
from vae.training.monitor import find_collapse

pytestmark = pytest.mark.usefixtures("float32")


def constant_objective(one_code: bool) -> NegativeELBO:
    """Return an objective whose encoder gives every image one code, or the prior."""
    objective = pattern_objective()
    layer = objective.model.encoder[-1]
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    if one_code:
        layer.bias.data[::4] = 4.0
    return objective


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_one_code_for_every_image_is_named_once_with_what_helps(tmp_path, caplog):
    train_alone(tmp_path, constant_objective(one_code=True), pattern_data(), adam(0.0))
    (line,) = warnings_of(caplog)
    assert line == (
        "after epoch 1, every image has the same code (perplexity 1.30, rate 3.37 nats); "
        "model.output_bias=data_mean prevents this in most runs"
    )


def test_a_model_that_starts_at_the_data_mean_is_not_told_to(tmp_path, caplog):
    objective = constant_objective(one_code=True)
    objective.model.register_buffer("mean_logits", torch.zeros(16))
    train_alone(tmp_path, objective, pattern_data(), adam(0.0))
    (line,) = warnings_of(caplog)
    assert line.endswith("a smaller learning rate (optimizer.lr) or another seed may help")


def test_a_posterior_that_equals_the_prior_is_named_as_such(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(monitor, "_STEPS_NEAR_PRIOR", 3)  # in place of 1,000
    train_alone(tmp_path, constant_objective(one_code=False), pattern_data(), adam(0.0))
    (line,) = warnings_of(caplog)
    assert line.startswith("after epoch 1, the posterior of every image is the prior (rate 0.00")
    assert line.endswith("a warm-up of the KL helps: objective/beta=linear")


def test_a_new_model_may_stay_close_to_the_prior_for_some_steps(tmp_path, caplog):
    train_alone(tmp_path, constant_objective(one_code=False), pattern_data(), adam(0.0))
    assert warnings_of(caplog) == []


def test_one_posterior_that_spreads_over_many_codes_gives_no_warning(tmp_path, caplog):
    objective = constant_objective(one_code=True)
    objective.model.encoder[-1].bias.data.mul_(0.3)
    train_alone(tmp_path, objective, pattern_data(), adam(0.0))
    assert evaluate(objective.model, pattern_data().valid.images).rate > 0.1
    assert warnings_of(caplog) == []


def test_replicas_are_counted_and_each_kind_is_named_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(monitor, "_STEPS_NEAR_PRIOR", 0)
    objectives = [
        constant_objective(one_code=True),
        constant_objective(one_code=False),
        constant_objective(one_code=True),
    ]
    parts = [
        ReplicaParts(tmp_path / str(seed), objective, adam(0.0), seed)
        for seed, objective in enumerate(objectives)
    ]
    train_replicas(parts, pattern_data())
    one_code, prior = warnings_of(caplog)
    assert one_code.startswith("after epoch 1 in 2 of 3 replicas, every image has the same code")
    assert prior.startswith("after epoch 1 in 1 of 3 replicas, the posterior of every image is")


def test_a_code_that_depends_on_the_image_gives_no_warning(tmp_path, caplog):
    objective = pattern_objective()
    with torch.no_grad():
        objective.model.encoder[-1].weight.mul_(10)
    train_alone(tmp_path, objective, pattern_data(), adam(0.0))
    assert warnings_of(caplog) == []


def test_a_deterministic_encoder_whose_mode_carries_the_code_gives_no_warning(tmp_path, caplog):
    """A posterior close to uniform, with a mode that differs between images."""
    objective = pattern_objective(StraightThroughArgmax())
    train_alone(tmp_path, objective, pattern_data(), adam(2e-2), epochs=40)
    model = objective.model
    with torch.no_grad():
        model.encoder[-1].weight.mul_(1e-3)
        model.encoder[-1].bias.mul_(1e-3)
    evaluation = evaluate(model, pattern_data().valid.images)
    assert evaluation.active == 0 and evaluation.rate < 0.1
    assert find_collapse(evaluation, step=10**6) is None
