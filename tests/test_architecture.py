"""Who may import whom: bottom to top, as the syntax trees say."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = [
    {"validation", "files", "errors", "signals", "machine", "grid", "published", "printing"},
    {"download"},
    {"schedules"},
    {"categorical", "networks", "data", "tracking", "environment", "sweep"},
    {"estimators", "model", "optimizers"},
    {"objective"},
    {"evaluation", "pictures", "checkpoint", "replicas", "run_state", "instantiate"},
    {"gradients", "step"},
    {"trainee"},
    {"training", "comparison", "probe"},
    {"configuration", "run_folder", "figures"},
    {"door"},
    {"runs", "tables"},
    {"run_gradients", "session"},
    {"report"},
    {"__init__"},
]
DOOR = {"configuration", "door", "instantiate", "run_folder", "run_gradients", "session"}
"""Where configuration stops."""
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
FILES = sorted((ROOT / "vae").rglob("*.py"))


def module_of(file: Path) -> str:
    return file.relative_to(ROOT / "vae").parts[0].removesuffix(".py")


def imports(file: Path, nodes) -> set[str]:
    """Absolute dotted names of all that the nodes import."""
    package = file.relative_to(ROOT).parent.parts
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *filter(None, [node.module])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


def all_imports(file: Path) -> set[str]:
    return imports(file, ast.walk(ast.parse(file.read_text())))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    own = module_of(file)
    inside = {name.split(".")[1] for name in all_imports(file) if name.startswith("vae.")}
    for other in inside - {own}:
        assert RANK[other] < RANK[own], f"{own} imports {other}"


def test_every_module_has_a_layer():
    assert {module_of(file) for file in FILES} == set(RANK)


def test_configuration_stops_at_the_door():
    for file in FILES:
        libraries = {name.partition(".")[0] for name in all_imports(file)}
        if module_of(file) not in {"errors", "published", "sweep", *DOOR}:
            assert not libraries & {"hydra", "omegaconf"}, file


def test_the_model_knows_no_estimator_and_no_estimator_the_model():
    for file in FILES:
        inside = {name.split(".")[1] for name in all_imports(file) if name.startswith("vae.")}
        if module_of(file) == "model":
            assert "estimators" not in inside
        if module_of(file) == "estimators":
            assert not inside & {"model", "networks", "data"}


@pytest.mark.parametrize(
    "name", ["train.py", "evaluate.py", "vae/__init__.py", "vae/errors.py", "vae/published.py"]
)
def test_what_help_imports_needs_no_torch(name):
    file = ROOT / name
    libraries = {n.partition(".")[0] for n in imports(file, ast.parse(file.read_text()).body)}
    assert not libraries & {"torch", "torchvision", "tensorboard", "vae"}
