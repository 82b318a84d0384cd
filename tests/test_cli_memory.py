"""What is in a memory file, at the command line: looking, going back, levels that stand still; bad input harms nothing."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nestling.cli import EXAMPLES
from tests.helpers import same
from tests.test_cli import nestling
from tests.test_cli_convert import place  # noqa: F401 - a fixture


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A folder of one's own with the model and the memory that the examples of `--help` made."""
    shutil.copy(place / "me.safetensors", tmp_path)
    shutil.copy(place / "notes.txt", tmp_path)
    (tmp_path / "model").symlink_to(place / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, *more: str) -> str:
    """The output of an example of `--help`, which must succeed."""
    done = nestling(*shlex.split(EXAMPLES[command])[1:], *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def learn(*more: str) -> str:
    text = json.dumps(["notes.txt"])
    done = nestling("learn", "--model", "model", "--memory", "me.safetensors", "--text", text, *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def level(line: int = 0) -> str:
    return run("memory show").splitlines()[line]


def test_the_examples_do_what_they_say(here):
    """In the order of a user's day: a snapshot, another memory, a level that stands still, and back."""
    assert "snapshots: before-notes" in run("memory show") and "9 updates" not in level()
    run("memory fork")
    same(load_file("you.safetensors"), load_file("me.safetensors"))
    run("memory snapshot")
    run("memory freeze")
    updates = level().split(", ")[1]
    learn()
    assert "frozen" in level() and updates in level()
    run("memory unfreeze")
    learn()
    assert "frozen" not in level() and updates not in level()
    run("memory reset")
    run("memory rollback")
    assert "0 updates" in level() and "snapshots: before-notes, today" in run("memory show")


def test_reading_writes_a_log(here):
    """A line a period: tokens and loss, and each level's surprise, update norm and updates."""
    learn("--log", "learning.jsonl")
    lines = [json.loads(line) for line in Path("learning.jsonl").read_text().splitlines()]
    names = {"tokens", "loss", "surprise", "norms", "updates", "refused"}
    assert all(line.keys() == names for line in lines)
    assert sum(line["tokens"] for line in lines) == len(Path("notes.txt").read_text())
    assert lines[-1]["updates"][0] > lines[0]["updates"][0]


def test_bad_input_is_one_sentence_and_the_memory_is_untouched(here):
    """Exit status 2, what there is instead, and the file as it was."""
    before = Path("me.safetensors").read_bytes()
    common = ["--model", "model", "--memory", "me.safetensors"]
    bad = {
        "no snapshot": (["memory", "rollback", *common, "--snapshot", "x"], "there are: 'before-notes'"),
        "a name twice": (["memory", "snapshot", *common, "--name", "before-notes"], "exists already"),
        "no level": (["memory", "freeze", *common, "--level", "7"], "no level 7"),
        "fork onto a file": (["memory", "fork", *common, "--out", "notes.txt"], "exists already"),
        "no memory": (["memory", "show", "--model", "model", "--memory", "none"], "does not exist"),
        "learn twice": (["learn", *common, "--text", '["notes.txt"]', "--snapshot", "before-notes"], "exists already"),
    }
    for name, (arguments, words) in bad.items():
        done = nestling(*arguments)
        assert done.returncode == 2 and words in done.stderr, f"{name}: {done.stderr}"
        assert len(done.stderr.strip().splitlines()) == 1 and Path("me.safetensors").read_bytes() == before, name
