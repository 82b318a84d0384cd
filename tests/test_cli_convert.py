"""Converting, learning, answering and merging at the command line, as the help shows it; bad input harms nothing."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nestling.cli import EXAMPLES
from nestling.train import byte_tokenizer
from tests.families import decoder, encoder
from tests.helpers import same
from tests.test_cli import Done, nestling

TEXT = "All that is gold does not glitter, not all those who wander are lost. " * 30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved tiny Llama, a text, and what the examples of `--help` make of them, run in order."""
    folder = tmp_path_factory.mktemp("convert")
    save(decoder("llama", vocab_size=384, max_position_embeddings=512, eos_token_id=None), folder / "llama")
    (folder / "notes.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("convert", "learn", "generate", "merge"):
            done = nestling(*shlex.split(EXAMPLES[command])[1:])
            assert done.returncode == 0, done.stderr
    return folder


def save(model, folder: Path) -> None:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def generate(model: Path, *more: str) -> Done:
    return nestling("generate", "--model", str(model), "--prompt", "All that", "--max_new_tokens", "16", *more)


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_shows_an_example(command):
    """`--help` prints the command that the fixture ran."""
    done = nestling(*command.split(), "--help")
    assert done.returncode == 0 and " ".join(EXAMPLES[command].split()) in " ".join(done.stdout.split())


def test_what_was_converted_learnt_and_merged_is_what_the_commands_say(place):
    """Converted it says what the original does; with a memory something else; merged, a plain model says that too."""
    original, converted = generate(place / "llama"), generate(place / "model")
    learnt = generate(place / "model", "--memory", str(place / "me.safetensors"))
    merged = generate(place / "plain")
    assert original.returncode == converted.returncode == learnt.returncode == merged.returncode == 0
    assert original.stdout == converted.stdout != learnt.stdout == merged.stdout
    assert json.loads((place / "plain" / "config.json").read_text())["model_type"] == "llama"


def test_merging_without_a_memory_gives_the_original_back(place, tmp_path):
    """Weights bit for bit."""
    done = nestling("merge", "--model", str(place / "model"), "--out", str(tmp_path / "back"))
    assert done.returncode == 0, done.stderr
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "back", place / "llama")]
    same(*(dict(model.state_dict()) for model in models))


def test_an_encoder_is_converted_too(tmp_path):
    """With the levels that are the default; it predicts no token, so that `learn` and `generate` refuse it."""
    save(encoder(vocab_size=384), tmp_path / "bert")
    done = nestling("convert", "--model", str(tmp_path / "bert"), "--out", str(tmp_path / "model"), "--form", "dealt")
    assert done.returncode == 0 and "2 levels" in done.stdout, done.stderr
    done = generate(tmp_path / "model")
    assert done.returncode == 2 and "predicts no next token" in done.stderr, done.stderr


def bad_inputs(place: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> arguments, and what the sentence must contain."""
    llama, model, memory = str(place / "llama"), str(place / "model"), str(place / "me.safetensors")
    decoder("llama").save_pretrained(place / "mute")
    save(decoder("llama", vocab_size=384), place / "broken")
    file = place / "broken" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    save(decoder("llama", vocab_size=384, seed=1), place / "short")
    (place / "binary.txt").write_bytes(b"All that \xff\xfe is")
    out, level = str(place / "new"), '[{"period": 8, "lr": 0.1}]'
    convert = ["convert", "--out", out, "--model"]
    learn = ["learn", "--memory", memory, "--model"]
    text = json.dumps([str(place / "notes.txt")])
    return {
        "no model": ([*convert, str(place / "none")], "holds no model"),
        "no tokenizer": ([*convert, str(place / "mute")], "holds no tokenizer"),
        "broken weights": ([*convert, str(place / "broken")], "cannot be loaded"),
        "short context": ([*convert, str(place / "short")], "period, 256, is longer than the model's 64 positions"),
        "converted twice": ([*convert, model, "--levels", level], "has levels already"),
        "no recall": (
            [*convert, llama, "--levels", level, "--recall", "0"],
            "window=0 of a recall must be a whole number",
        ),
        "unknown form": ([*convert, llama, "--levels", level, "--form", "pile"], "form='pile' is unknown"),
        "unknown map": ([*convert, llama, "--levels", level, "--assign", '["nose"]'], "names ['nose']"),
        "unknown block": ([*convert, llama, "--levels", level, "--assign", "[9]"], "block 9"),
        "levels that do not nest": (
            [*convert, llama, "--levels", '[{"period": 8, "lr": 0.1}, {"period": 12, "lr": 0.1}]'],
            "period 12 is not a multiple",
        ),
        "out exists": (["convert", "--model", llama, "--out", model, "--levels", level], "exists already"),
        "merge of a plain model": (["merge", "--model", llama, "--out", out], "is no converted model"),
        "merge of no memory": (["merge", "--model", model, "--out", out, "--memory", out], "does not exist"),
        "learning with a plain model": ([*learn, llama, "--text", text], "has no levels"),
        "bytes that are no text": ([*learn, model, "--text", json.dumps([str(place / "binary.txt")])], "not UTF-8"),
    }


def test_bad_input_is_one_sentence_and_the_store_is_untouched(place):
    """No traceback, exit status 2, a message that names the matter; neither the memory nor a folder has changed."""
    memory = (place / "me.safetensors").read_bytes()
    for name, (arguments, words) in bad_inputs(place).items():
        done = nestling(*arguments)
        assert done.returncode == 2, name
        assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, f"{name}: {done.stderr}"
        assert words in done.stderr, f"{name}: {done.stderr}"
        assert not (place / "new").exists() and (place / "me.safetensors").read_bytes() == memory, name


def test_a_chain_that_learnt_is_not_merged(place, tmp_path):
    """One sentence, and no folder."""
    level = '[{"period": 8, "lr": 0.5}, {"period": 16, "lr": 0.1}]'
    common = ["--model", str(place / "llama"), "--levels", level, "--form", "chain"]
    assert nestling("convert", *common, "--out", str(tmp_path / "model")).returncode == 0
    memory, text = str(tmp_path / "memory"), json.dumps([str(place / "notes.txt")])
    model = ["--model", str(tmp_path / "model"), "--memory", memory]
    assert nestling("learn", *model, "--text", text).returncode == 0
    done = nestling("merge", *model, "--out", str(tmp_path / "plain"))
    assert done.returncode == 2 and "chain whose members have learnt" in done.stderr
    assert not (tmp_path / "plain").exists()
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_rank_makes_a_small_memory(place, tmp_path):
    """Converted with a rank, it learns into a fraction of the bytes, and merges."""
    sizes, text = [], json.dumps([str(place / "notes.txt")])
    for name, rank in (("full", ""), ("low", ', "rank": 2')):
        levels = f'[{{"period": 8, "lr": 0.5{rank}}}, {{"period": 16, "lr": 0.5, "rule": "RetainSeen"{rank}}}]'
        model, memory = str(tmp_path / name), str(tmp_path / f"{name}.safetensors")
        assert nestling("convert", "--model", str(place / "llama"), "--out", model, "--levels", levels).returncode == 0
        assert nestling("learn", "--model", model, "--memory", memory, "--text", text).returncode == 0
        out = str(tmp_path / f"{name}-plain")
        assert nestling("merge", "--model", model, "--memory", memory, "--out", out).returncode == 0
        learnt = generate(Path(model), "--memory", memory)
        assert learnt.stdout == generate(Path(out)).stdout != generate(place / "llama").stdout
        sizes.append(
            sum(t.nbytes for n, t in load_file(memory).items() if n.startswith("memory/") and "/weights/" in n)
        )
    assert sizes[1] < 0.1 * sizes[0]
