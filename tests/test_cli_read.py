"""`nestling read`: to the end, in two halves, stopped by Ctrl-C, and with what cannot be read."""

import json
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from nestling.continual import Learner
from nestling.models import HopeForCausalLM
from nestling.models.stream import Stream
from nestling.train import byte_tokenizer
from tests.test_cli import Done, nestling
from tests.tiny import model

TEXT = "All that is gold does not glitter,\nnot all those who wander are lost.\n" * 4


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model and a text of 280 bytes."""
    network = model("hope-attention", vocab_size=384).float()
    network.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def read(place: Path, checkpoint: str, *more: str, text: str = "text.txt") -> Done:
    given = json.dumps([str(place / text)])
    common = ["--model", str(place / "model"), "--text", given, "--checkpoint", str(place / checkpoint)]
    return nestling("read", *common, "--block", "12", "--every", "100", *more)


def test_it_says_how_it_reads_and_goes_on(place: Path) -> None:
    """Position, loss, tokens a second and memory at every checkpoint; in two runs the file is that of one."""
    whole = read(place, "whole.safetensors")
    assert re.search(r"^108 tokens, the last at [\d.]+ nats each, [\d,]+ tokens/s, [\d,]+ MiB$", whole.stdout, re.M)
    assert f"read {len(TEXT)} tokens at" in whole.stdout
    assert "read 130 tokens at" in read(place, "parts.safetensors", "--tokens", "130").stdout
    assert read(place, "parts.safetensors").stdout.startswith("goes on after 130 tokens")
    one, two = (load_file(place / f"{name}.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_stopped_from_the_keyboard_it_keeps_what_was_read(place: Path) -> None:
    """One line, status 130, and a checkpoint from which the same command goes on."""
    calls, reading = [], Stream._read

    def interrupted(self, at):
        calls.append(at)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return reading(self, at)

    with mock.patch.object(Stream, "_read", interrupted):
        done = read(place, "at.safetensors")
    assert done.returncode == 130
    assert done.stderr.strip() == "stopped after 48 tokens; the same command goes on from there"
    assert read(place, "at.safetensors").stdout.startswith("goes on after 48 tokens")
    network = HopeForCausalLM.from_pretrained(place / "model")
    Learner(network, byte_tokenizer()).load(place / "at.safetensors")


@pytest.mark.parametrize("wrong", ["no file", "no text", "no model", "no tokens", "damaged", "another text"])
def test_what_cannot_be_read_is_one_sentence(wrong: str, place: Path) -> None:
    more, text, said = (
        [],
        "text.txt",
        {"no file": "does not exist", "no text": "not UTF-8", "no model": "holds no model"},
    )
    said |= {"no tokens": "must be at least 1", "damaged": "is truncated", "another text": "are not those that"}
    (place / "other.txt").write_text(TEXT.upper())
    (place / "binary.txt").write_bytes(b"\xff\xfe")
    if wrong in ("damaged", "another text"):
        assert read(place, "at.safetensors").returncode == 0
    if wrong == "damaged":
        (place / "at.safetensors").write_bytes(b"{}")
    elif wrong == "no model":
        (place / "model" / "config.json").unlink()
    elif wrong == "no tokens":
        more = ["--tokens", "0"]
    else:
        text = {"no file": "none.txt", "no text": "binary.txt", "another text": "other.txt"}[wrong]
    done = read(place, "at.safetensors", *more, text=text)
    assert done.returncode == 2 and said[wrong] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
