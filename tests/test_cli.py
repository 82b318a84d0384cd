"""The command line: the whole way from a text to a memory and back, and one clear sentence for every bad input."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from nestling import cli
from nestling.levels import Level
from nestling.memory import RetainPredictions
from nestling.settings import LevelSettings

TEXT = "All that is gold does not glitter, not all those who wander are lost. " * 30
SMALL = ["--model.hidden_size", "16", "--model.num_hidden_layers", "1", "--model.memory_hidden", "8"]
FAST = {"period": 16, "lr": 0.5, "reset": "context"}
SLOW = {"period": 32, "lr": 1e-3, "rule": {"name": "StepOf", "optimizer": "M3", "momentum": 0.9}}
LEVELS = json.dumps([FAST, SLOW])


@dataclass
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def nestling(*arguments: str) -> Done:
    """Run a command as the shell would, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with redirected[0], redirected[1], mock.patch.object(sys, "argv", ["nestling", *arguments]):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a trained model and a memory, all made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text(TEXT)
    training = ["--training.tokens", "1024", "--training.length", "64"]
    done = nestling("train", "--text", json.dumps([str(folder / "text.txt")]), "--out", str(folder / "model"),
                    "--model.levels", LEVELS, *SMALL, *training)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "saved in" in done.stdout
    done = learn(folder)
    assert done.returncode == 0, done.stderr
    return folder


def learn(folder: Path, text: str = "text.txt", memory: str = "memory.safetensors", model: str = "model") -> Done:
    given = json.dumps([str(folder / text)])
    return nestling("learn", "--model", str(folder / model), "--text", given, "--memory", str(folder / memory))


def test_a_memory_changes_what_is_generated_from_and_goes_on(place: Path) -> None:
    """Generating works with and without the memory; learning again takes the memory up."""
    common = ["generate", "--model", str(place / "model"), "--prompt", "All that", "--max_new_tokens", "4"]
    for extra in ([], ["--memory", str(place / "memory.safetensors")], ["--temperature", "0.8"]):
        done = nestling(*common, *extra)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("All that")
    before = (place / "memory.safetensors").read_bytes()
    assert learn(place).returncode == 0
    assert (place / "memory.safetensors").read_bytes() != before


def bad_inputs(place: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> arguments, and what the sentence must contain."""
    (place / "empty.txt").write_text("")
    (place / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    (place / "broken.toml").write_text("[model]\nmixerr = 3\n")
    memory = place / "memory.safetensors"
    (place / "truncated.safetensors").write_bytes(memory.read_bytes()[: memory.stat().st_size // 2])
    text, model, out = json.dumps([str(place / "text.txt")]), str(place / "model"), str(place / "other")
    train = ["train", "--out", out, "--text"]
    generate = ["generate", "--prompt", "x", "--model", model, "--memory"]
    return {
        "missing text": ([*train, json.dumps([str(place / "none.txt")])], "does not exist"),
        "empty text": ([*train, json.dumps([str(place / "empty.txt")])], "is empty"),
        "not text": ([*train, json.dumps([str(place / "binary.txt")])], "not UTF-8"),
        "unreadable text": ([*train, json.dumps([str(place)])], "cannot be read"),
        "unknown mixer": ([*train, text, "--model.mixer", "mamba"], "mixer='mamba' is unknown"),
        "unknown key": ([*train, text, "--model.mixerr", "attention"], "mixerr"),
        "unknown key in a file": ([*train, text, "--config", str(place / "broken.toml")], "mixerr"),
        "wrong type": ([*train, text, "--training.tokens", "many"], "tokens"),
        "unknown rule": ([*train, text, "--model.levels", '[{"period": 8, "lr": 1.0, "rule": "Magic"}]'], "Magic"),
        "no model": (["generate", "--prompt", "x", "--model", out], "holds no model"),
        "empty prompt": (["generate", "--prompt", "", "--model", model], "empty"),
        "no memory": ([*generate, str(place / "none")], "does not exist"),
        "truncated memory": ([*generate, str(place / "truncated.safetensors")], "truncated"),
        "no memory file": ([*generate, str(place / "text.txt")], "no memory file"),
        "both sizes": (["demo", "--quick", "--full"], "exclude each other"),
    }


def test_bad_input_is_one_sentence_and_a_non_zero_exit(place: Path) -> None:
    """No traceback, a message that names the matter, and nothing half done."""
    for name, (arguments, words) in bad_inputs(place).items():
        done = nestling(*arguments)
        assert done.returncode != 0, name
        assert "Traceback" not in done.stderr, f"{name}: {done.stderr}"
        assert words in done.stderr, f"{name}: {done.stderr}"
        assert not (place / "other").exists(), name


def test_a_memory_of_another_model_is_refused_and_stays_intact(place: Path) -> None:
    """The file is recognised by a hash of the weights and the configuration."""
    training = ["--training.tokens", "512", "--training.length", "64", "--training.seed", "1"]
    text = json.dumps([str(place / "text.txt")])
    done = nestling(
        "train", "--text", text, "--out", str(place / "second"), "--model.levels", LEVELS, *SMALL, *training
    )
    assert done.returncode == 0, done.stderr
    before = (place / "memory.safetensors").read_bytes()
    done = learn(place, model="second")
    assert done.returncode == 2
    assert "another model" in done.stderr
    assert (place / "memory.safetensors").read_bytes() == before


def test_what_a_level_is_given_reaches_its_rule():
    """Damping and forgetting by the side of a rule's name; a rule that has none says so."""
    given = LevelSettings(512, 4.0, rule="RetainPredictions", damping=0.03, forgetting=0.9)
    assert Level.from_dict(given.to_dict()).rule == RetainPredictions(damping=0.03, forgetting=0.9)
    with pytest.raises(ValueError, match=r"rule GradientDescent of a level.*damping"):
        Level.from_dict(LevelSettings(512, 4.0, damping=0.03).to_dict())
