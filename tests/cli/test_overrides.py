"""Overrides and commands that can be pasted: they mean the same text after shell and Hydra."""

import shlex
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vae.cli.overrides import override
from vae.utils import commands

_TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1)


@given(_TEXT)
@example("outputs/lr=0.1")
@example("a b [1] {x: 1}")
@example("h\u00fcte/\u4e2d")
@example('it\'s "quoted"')
@example("back\\slash\\")
@example("${now:%Y}")
@example("1e3")
@example("007")
@example("null")
@example("a,b")
@example("choice(1,2)")
def test_an_override_has_exactly_the_given_value(text):
    parsed = OverridesParser.create().parse_override(override("resume", text))
    assert not parsed.is_sweep_override()
    config = OmegaConf.create({"resume": parsed.value()})
    assert config.resume == text


@given(st.lists(_TEXT))
def test_a_command_has_exactly_the_given_words(words):
    assert shlex.split(commands.script_command("train.py", *words))[-len(words) - 1 :] == [
        "train.py",
        *words,
    ]


def test_simple_values_are_not_quoted():
    assert override("resume", "/home/me/outputs/reinmax_4x8") == (
        "resume=/home/me/outputs/reinmax_4x8"
    )


@pytest.fixture
def bin(tmp_path, monkeypatch) -> Path:
    """A folder with the only programs, and this interpreter in another folder; not run by uv."""
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_commands_are_run_by_uv_as_this_process_is(bin, monkeypatch):
    monkeypatch.setenv("UV", "/bin/uv")
    assert commands.script_command("train.py", "seed=1") == "uv run train.py seed=1"
    assert commands.tensorboard_command(Path("a b")) == "uv run tensorboard --logdir 'a b'"


def test_commands_name_an_interpreter_that_is_not_on_the_path(bin, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/envs/my env/bin/python3")
    assert commands.script_command("train.py") == "'/envs/my env/bin/python3' train.py"
    command = commands.tensorboard_command(Path("outputs"))
    assert command == "'/envs/my env/bin/python3' -m tensorboard.main --logdir outputs"


def test_commands_use_the_short_names_of_programs_on_the_path(bin, monkeypatch):
    for name in ("python", "tensorboard"):
        (bin / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(bin / "python3"))
    assert commands.script_command("train.py") == "python train.py"
    assert commands.tensorboard_command(Path("outputs")) == "tensorboard --logdir outputs"


def test_scripts_are_named_by_their_path_from_another_folder(bin, monkeypatch):
    monkeypatch.chdir(bin)
    monkeypatch.setenv("UV", "/bin/uv")
    script = shlex.split(commands.script_command("evaluate.py"))[-1]
    assert Path(script).is_absolute() and Path(script).exists()
