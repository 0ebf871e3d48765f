"""What each estimator was published with: the table that an experiment brings.

    published:
      reinmax: {optimizer: RAdam, lr: 5e-4, temperature: 1.5}
      others: {optimizer: RAdam, lr: 5e-4}

An option file that writes `${published:lr,1e-3}` gets what the table has for the chosen estimator,
else what it has for the others, else 1e-3. That is the value of the option file and no more, so
whatever else names one wins. Imports no torch: train.py registers this before anything is slow.
"""

from omegaconf import DictConfig, OmegaConf

TABLE = "published"
OTHERS = "others"  # the row of estimators without one of their own


def published(key: str, default: object, *, _root_: DictConfig) -> object:
    table = _root_.get(TABLE)
    if not OmegaConf.is_dict(table):  # no experiment, or none with a table
        return default
    estimator = OmegaConf.select(_root_, "estimator._target_") or ""
    own = [name for name in table if is_called(estimator, name)]
    rows = [table[name] for name in (*own, OTHERS) if OmegaConf.is_dict(table.get(name))]
    return next((row[key] for row in rows if key in row), default)


def is_called(target: str, name: str) -> bool:
    """Whether a class is the one that a row means: reinmax is ReinMax."""
    return target.rpartition(".")[2].lower() == name.replace("_", "")


def by(key: str, choices: DictConfig, *, _root_: DictConfig) -> object:
    """`${by:categories,{2: 240, 4: 120}}`: what a setting is for one value of another."""
    value = OmegaConf.select(_root_, key)
    if value not in choices:
        there = ", ".join(map(str, choices))
        raise ValueError(f"{key}={value}: the experiment has settings for {there}")
    return choices[value]


OmegaConf.register_new_resolver(TABLE, published, replace=True)
OmegaConf.register_new_resolver("by", by, replace=True)
