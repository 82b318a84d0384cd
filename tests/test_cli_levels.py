"""`nestling levels`: the table of a model from its configuration alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from transformers import BertConfig, LlamaConfig

from nestling import HopeConfig, HopeForCausalLM, Level, cli
from nestling.cli.folders import outline
from nestling.cli.optimizers import WITH_DATA, make_optimizers
from nestling.errors import UserError
from nestling.levels import describe
from tests.families import decoder
from tests.test_cli import nestling
from tests.tiny import converted

LARGE = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
LEVELS = [Level(16, lr=0.1), Level(64, lr=0.1)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with a configuration and nothing else, and with whole models."""
    folder = tmp_path_factory.mktemp("levels")
    LlamaConfig(**LARGE, dtype="bfloat16", architectures=["LlamaForCausalLM"]).save_pretrained(folder / "large")
    BertConfig(num_hidden_layers=2, architectures=["BertForSequenceClassification"]).save_pretrained(folder / "bert")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 300}
    HopeForCausalLM(HopeConfig(**size, levels=LEVELS, learning="parameter")).save_pretrained(folder / "hope")
    decoder("gpt2").save_pretrained(folder / "gpt2")
    converted("llama").save_pretrained(folder / "converted")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    (folder / "empty").mkdir()
    return folder


def test_a_large_model_is_described_without_its_weights(place, tmp_path):
    """Seven thousand million parameters of two bytes, from a file of a few hundred; as data and as a picture too."""
    files = tmp_path / "levels.json", tmp_path / "levels.svg"
    done = nestling(
        "levels", str(place / "large"), "--optimizer", "AdamW", "--json", str(files[0]), "--svg", str(files[1])
    )
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM, trained by AdamW, a step every 524,288 tokens" in done.stdout
    data = json.loads(files[0].read_text())
    weights = [component["parameters"] for level in data["levels"] for component in level]
    numbers = sum(size["numbers"] for size in weights)
    assert numbers == 6_738_415_616 and sum(size["bytes"] for size in weights) == 2 * numbers
    assert ElementTree.parse(files[1]).getroot().tag.endswith("svg")


@pytest.mark.parametrize("name", ["gpt2", "converted"])
def test_the_outline_is_the_model(place, name):
    """Levels and sizes of the folder are those of the model that was saved in it; tied weights stay tied."""
    model = decoder("gpt2") if name == "gpt2" else converted("llama")
    assert describe(outline(str(place / name))) == describe(model)


OPTIMIZERS = {
    "AdamW": ["first moment", "second moment"],
    "Muon": ["momentum", "first moment", "second moment"],
    "M3": ["fast momentum", "slow momentum of 32 steps", "first moment"],
    "DGD": ["count of steps (DGD, group 1)", "count of steps (DGD, group 2)"],
    "DeepMomentum": ["deep momentum"],
    '{"name": "SGD", "momentum": 0.5, "nesterov": true, "lr": 0.1}': ["momentum"],
    '{"name": "M3", "periods": [4], "weights": [1.0]}': ["slow momentum of 4 steps"],
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["gpt2", "hope"])
def test_an_optimizer_by_name_or_with_settings(place, tmp_path, model, optimizer):
    """What it remembers is in the table; a model whose levels an optimiser moves has these beside it."""
    file = tmp_path / "levels.json"
    given = ["--optimizer", optimizer, "--tokens_per_step", "32", "--json", str(file)]
    done = nestling("levels", str(place / model), *given)
    assert done.returncode == 0, done.stderr
    rows = {c["name"]: c for level in json.loads(file.read_text())["levels"] for c in level}
    assert set(OPTIMIZERS[optimizer]) <= set(rows)
    if model == "hope":
        assert rows["CMS level 0"]["frequency"] == 1 / 32 and rows["CMS level 1"]["frequency"] == 1 / 64


def test_optimizers_to_choose_from_are_those_that_can_be_shown(place):
    """Whatever is proposed works; what needs data for its first step is not proposed, and says so."""
    network = outline(str(place / "gpt2"))
    with pytest.raises(UserError, match="is unknown; choose") as raised:
        make_optimizers(network, "Magic")
    proposed = str(raised.value).partition("choose ")[2].split(", ")
    assert {"AdamW", "DGD", "M3", "Muon", "SGD"} <= set(proposed)
    for name in proposed:
        assert describe(network, make_optimizers(network, name)).optimizers
    for name in WITH_DATA:
        with pytest.raises(UserError, match=f"optimizer='{name}' makes its state in its first step.*choose AdEMAMix"):
            make_optimizers(network, name)
        with pytest.raises(ValueError, match="make a step with lr=0"):
            describe(network, getattr(torch.optim, name)(network.parameters()))


def test_it_ends_quietly_when_nobody_reads_on(place, monkeypatch, capsys):
    """As in `nestling levels model | head`: a pipe whose other end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "argv", ["nestling", "levels", str(place / "gpt2")])
    with open(writing, "w") as out, monkeypatch.context() as printing:
        printing.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        print("more", file=out, flush=True)  # what is still to be written goes nowhere
    assert stop.value.code == 1 and capsys.readouterr().err == ""


def test_a_head_that_was_saved_is_there(place):
    """The class is the one that the configuration names."""
    model = outline(str(place / "bert"))
    assert type(model).__name__ == "BertForSequenceClassification"
    assert {p.device for p in model.parameters()} == {torch.device("meta")}


def test_bad_input_is_one_sentence(place, tmp_path):
    """Exit status 2, no traceback, and what to do."""
    gpt2 = str(place / "gpt2")
    for arguments, words in (
        ([str(place / "empty")], "holds no model (no config.json)"),
        (["no/such-model"], "in the local cache; give a folder"),
        ([str(place / "broken")], "broken"),
        ([gpt2, "--optimizer", "Magic"], "optimizer='Magic' is unknown; choose"),
        ([gpt2, "--optimizer", "Retained"], "optimizer='Retained' is unknown"),
        ([gpt2, "--optimizer", '{"name": "SGD", "speed": 1}'], "no setting 'speed'; it takes lr, momentum,"),
        ([gpt2, "--optimizer", '{"momentum": 0.9}'], "optimizer={'momentum': 0.9} has no name"),
        ([gpt2, "--svg", ""], "svg='' is no name of a file"),
        ([gpt2, "--json", str(place)], "is no name of a file; give one, such as levels.json"),
        ([gpt2, "--optimizer", "AdamW", "--tokens_per_step", "1.5"], "tokens_per_step: Expected int; given was 1.5"),
        (["--response", "--levels", '[{"period": 4}]'], "levels: the following arguments are required: lr;"),
        (["--response", "--levels", '[{"period": "x", "lr": 1}]'], "levels: period: Expected int, got x;"),
        (["--response", "--levels", '[{"period": 4, "lr": 1, "lrr": 2}]'], "levels: Option 'lrr' is not accepted;"),
        ([gpt2, "--speed", "1"], "unrecognized arguments: --speed 1; nestling levels --help"),
        ([gpt2, "--optimizer", '{"name": "M3", "periods": [0], "weights": [1.0]}'], "periods=(0,)"),
        ([gpt2, "--tokens_per_step", "64"], "without an optimizer"),
        (
            [gpt2, "--optimizer", "AdamW", "--tokens_per_step", "0"],
            "tokens_per_step=0 must be a whole number of tokens, at least 1",
        ),
        ([], "which model?"),
        ([gpt2, "--levels", '[{"period": 4, "lr": 0.1}]'], "--levels belongs to --response"),
        ([gpt2, "--response"], "has no levels"),
        ([gpt2, "--response", "--levels", '[{"period": 4, "lr": 0.1}]'], "leave one of them out"),
        (["--response", "--optimizer", "AdamW"], "--optimizer belongs to the table"),
        (["--response", "--levels", '[{"period": 4, "lr": 0.1, "clip": 1.0}]'], "clip"),
        ([gpt2, "--json", str(tmp_path / "none" / "x.json")], "No such file or directory"),
    ):
        done = nestling("levels", *arguments)
        assert done.returncode == 2, (arguments, done.stdout)
        assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert words in done.stderr, done.stderr


@pytest.mark.parametrize("given", [["model"], ["--levels", '[{"period": 16, "lr": 0.1}, {"period": 64, "lr": 0.1}]']])
def test_the_response_of_a_model_is_that_of_its_levels(place, tmp_path, given):
    """Or of levels alone; measured and drawn."""
    pytest.importorskip("matplotlib")
    given = [str(place / "hope")] if given == ["model"] else given
    done = nestling("levels", *given, "--response", "--svg", str(tmp_path / "gains.svg"))
    assert done.returncode == 0, done.stderr
    assert "period 16, lr 0.1" in done.stdout and "period 64, lr 0.1" in done.stdout
    assert ElementTree.parse(tmp_path / "gains.svg").getroot().tag.endswith("svg")


def test_help_shows_an_example_that_works(place, tmp_path, monkeypatch):
    """The last words of the help, run where a model of that name is."""
    done = nestling("levels", "--help")
    assert done.returncode == 0
    example = " ".join(done.stdout.split("example:")[1].split()).removeprefix("nestling ")
    (tmp_path / "model").symlink_to(place / "gpt2")
    monkeypatch.chdir(tmp_path)
    done = nestling(*example.split())
    assert done.returncode == 0 and (tmp_path / "levels.svg").exists(), done.stderr


def test_nothing_of_torch_is_imported_for_the_help():
    """The command's module is as quick as the others."""
    code = "import sys, nestling.cli.levels; print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == ""
