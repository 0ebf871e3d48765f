"""Evaluate a model after each epoch, and draw its pictures."""

import math
from typing import Literal, NamedTuple

from torch import Tensor

from vae.data import DataSet, digest, evaluation_images, to_float
from vae.evaluation import Evaluation, evaluate, gradient_quality, true_gradients
from vae.model import CategoricalVAE
from vae.objective import NegativeELBO, TrainingObjective
from vae.schedules import Step
from vae.tracking import Logger, LoggingConfig, pictures

Collapse = Literal["one code", "prior"]
"""What every image is given if the code does not depend on it: one code, or the prior."""

_GRADIENT_IMAGES, _GRADIENT_DRAWS = 100, 100
_RATE_OF_PRIOR = 0.1  # nats; a posterior with a smaller rate counts as the prior
_STEPS_NEAR_PRIOR = 1000  # steps in which a new model may stay close to the prior


class MonitorImages(NamedTuple):
    """The images that models are evaluated on and shown with after each epoch, uint8 (n, D)."""

    digest: str  # SHA-256 of the whole data set, which checkpoints store
    train: Tensor
    valid: Tensor  # may be empty
    pictures: Tensor

    @classmethod
    def of(cls, data: DataSet, logging: LoggingConfig) -> "MonitorImages":
        """Choose the images from a data set."""
        split_of_pictures = data.valid if len(data.valid) else data.test
        return cls(
            digest(data),
            evaluation_images(data, data.train)[: logging.train_images],
            data.valid.images,
            pictures.one_per_class_in_turn(split_of_pictures, logging.pictures),
        )


class EpochEvaluation(NamedTuple):
    """The evaluation of a model on training images and, if any are held out, on those."""

    train: Evaluation
    valid: Evaluation | None

    @property
    def codes(self) -> Evaluation:
        """The evaluation whose code usage is logged: held-out images, if there are any."""
        return self.valid or self.train

    def metrics(self) -> dict[str, float]:
        """Return the bounds and the code usage by the names that they are logged under."""
        metrics = add_names(self.train.bound_terms(), "{}/train")
        if self.valid is not None:
            metrics |= add_names(self.valid.bound_terms(), "{}/valid")
        return metrics | add_names(self.codes.code_terms(), "latent/{}")


def evaluate_epoch(model: CategoricalVAE, images: MonitorImages) -> EpochEvaluation:
    """Evaluate a model on the training images and the held-out images."""
    valid = evaluate(model, images.valid) if len(images.valid) else None
    return EpochEvaluation(evaluate(model, images.train), valid)


def find_collapse(evaluation: Evaluation, step: int) -> Collapse | None:
    """Return what every image is given if no latent depends on the image, and otherwise None.

    With "prior", the rate is almost 0. Every model begins there, so this counts only after 1,000
    steps. With "one code", the posterior has less than half of the largest entropy, N log K.
    """
    # A deterministic encoder may keep its information in the mode while q is close to uniform.
    mode_is_better = evaluation.elbo_map > evaluation.elbo + 1
    if evaluation.active or mode_is_better:
        return None
    if evaluation.rate < _RATE_OF_PRIOR:
        return "prior" if step >= _STEPS_NEAR_PRIOR else None
    latents, categories = evaluation.usage.shape
    is_concentrated = evaluation.entropy < latents * math.log(categories) / 2
    return "one code" if is_concentrated else None


def describe_collapse(collapse: Collapse, codes: Evaluation, model: CategoricalVAE) -> str:
    """Return one line that says what every image is given, and what helps."""
    if collapse == "prior":
        return (
            f"the posterior of every image is the prior (rate {codes.rate:.2f} nats), so the code "
            "says nothing about an image; a warm-up of the KL helps: objective/beta=linear"
        )
    remedy = "model.output_bias=data_mean prevents this in most runs"
    if model.mean_logits is not None:
        remedy = "a smaller learning rate (optimizer.lr) or another seed may help"
    numbers = f"perplexity {codes.perplexity:.2f}, rate {codes.rate:.2f} nats"
    return f"every image has the same code ({numbers}); {remedy}"


def gradient_metrics(objective: TrainingObjective, images: Tensor, step: Step) -> dict[str, float]:
    """Measure bias, variance and cosine of the estimator's gradient at a model, on 100 images."""
    if not isinstance(objective, NegativeELBO):
        raise TypeError("the gradient can only be measured for the ELBO")
    model, x = objective.model, to_float(images[:_GRADIENT_IMAGES])
    quality = gradient_quality(
        model, objective.estimator, x, true_gradients(model, x), step, _GRADIENT_DRAWS
    )
    names = ("bias", "bias_error", "variance", "cosine")
    return {f"gradient/{name}": getattr(quality, name) for name in names}


def log_pictures(
    logger: Logger, step: int, model: CategoricalVAE, images: Tensor, codes: Evaluation
) -> None:
    """Log reconstructions of images, samples, one latent swept, and how often codes are used."""
    logger.log_picture(step, "reconstructions", pictures.reconstructions(model, images))
    logger.log_picture(step, "samples", pictures.samples(model))
    traversal = pictures.latent_traversal(model, images[:10], latent=0)
    logger.log_picture(step, "traversal", traversal)
    logger.log_picture(step, "usage", pictures.usage(codes.usage))
    logger.log_histogram(step, "latent/code_usage", codes.usage * model.categories)


def check_measurable(objective: TrainingObjective, logging: LoggingConfig) -> None:
    """Raise ValueError if gradients are to be measured of an objective other than the ELBO."""
    if logging.gradient_every and not isinstance(objective, NegativeELBO):
        raise ValueError(
            f"tracking.gradient_every={logging.gradient_every}: gradients can only be measured "
            "with objective=negative_elbo; set it to 0"
        )


def add_names(values: dict[str, float], pattern: str) -> dict[str, float]:
    """Rename the values by a pattern such as "{}/train"."""
    return {pattern.format(name): value for name, value in values.items()}
