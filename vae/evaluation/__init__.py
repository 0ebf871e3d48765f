"""Bounds on log p(x) of a model, and the quality of an estimator's gradients.

The linear probe is not imported here, because it imports scikit-learn: see vae.evaluation.probe.
"""

from vae.evaluation.bounds import (
    CODE_TERMS,
    EXACT_LIMIT,
    Evaluation,
    can_enumerate,
    data_title,
    evaluate,
    evaluate_bounds,
    importance_weighted,
    log_likelihood,
)
from vae.evaluation.gradients import (
    GradientQuality,
    draws_made,
    fit,
    gradient_quality,
    true_gradients,
)

__all__ = [
    "CODE_TERMS",
    "EXACT_LIMIT",
    "Evaluation",
    "GradientQuality",
    "can_enumerate",
    "data_title",
    "draws_made",
    "evaluate",
    "evaluate_bounds",
    "fit",
    "gradient_quality",
    "importance_weighted",
    "log_likelihood",
    "true_gradients",
]
