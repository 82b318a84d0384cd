"""What was learnt survives a restart, in a new process too; and a file that cannot be used harms nothing."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nestling.continual import Learner
from nestling.errors import UserError
from nestling.models import HopeForCausalLM, Recall
from nestling.train import byte_tokenizer
from tests.helpers import same
from tests.tiny import knowledge, model

PROSE = "It was the best of times, it was the worst of times."
CODE = "def read(path):\n    with open(path) as file:\n        return file\n"
NAMES = ("hope", "hope-attention", "hope-optimised", "hope-delta")

OTHER_PROCESS = """
import json, sys, torch
from safetensors.torch import save_file
from nestling.continual import Learner
from nestling.models import HopeForCausalLM, Recall
from nestling.train import byte_tokenizer
torch.set_num_threads(1)
folder, text = sys.argv[1], sys.argv[2]
for name in json.loads(sys.argv[3]):
    learner = Learner(HopeForCausalLM.from_pretrained(f"{folder}/{name}"), byte_tokenizer())
    learner.load(f"{folder}/{name}.safetensors", user="alice")
    answer = learner.generate("def ", user="alice", max_new_tokens=12)
    losses = learner.observe(text, user="alice").losses
    logits = learner._user("alice").logits.contiguous()
    save_file({"losses": losses, "logits": logits}, f"{folder}/{name}.found", {"answer": answer})
"""


def a_learner(name="hope-attention", **changes):
    return Learner(model(name, vocab_size=384, **changes).float(), byte_tokenizer())


def test_a_new_process_goes_on_as_if_nothing_had_happened(tmp_path):
    """Saved in the middle of a segment, loaded by another process: the same losses, logits and answer, bit for bit."""
    learners = {name: a_learner(name) for name in NAMES}
    for name, learner in learners.items():
        learner.observe(PROSE, user="alice")
        learner.model.save_pretrained(tmp_path / name)
        learner.save(tmp_path / f"{name}.safetensors", user="alice")
    arguments = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path), CODE, json.dumps(NAMES)]
    subprocess.run(arguments, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    for name, learner in learners.items():
        with safe_open(tmp_path / f"{name}.found", framework="pt") as file:
            assert file.metadata()["answer"] == learner.generate("def ", user="alice", max_new_tokens=12)
        found = load_file(tmp_path / f"{name}.found")
        assert torch.equal(found["losses"], learner.observe(CODE, user="alice").losses)
        assert torch.equal(found["logits"], learner._user("alice").logits)


@pytest.mark.parametrize(
    ("name", "read"), [("hope", 27), ("hope-optimised", 27), *(("hope-attention", read) for read in (0, 1, 6, 7, 40))]
)
def test_a_stream_may_be_saved_anywhere(name, read, tmp_path):
    """Before the first token, at a boundary and between: the loaded stream is the one that was saved."""
    learner, loaded = a_learner(name), a_learner(name)
    if read:
        learner.observe(PROSE[:read])
    learner.save(tmp_path / "memory")
    loaded.load(tmp_path / "memory", user="another name")
    same(loaded.observe(PROSE[read:], user="another name").losses, learner.observe(PROSE[read:]).losses)
    cache, own = (one._user(user).cache for one, user in ((loaded, "another name"), (learner, "default")))
    same(knowledge(cache), knowledge(own))
    assert cache.get_seq_length() == own.get_seq_length()


def test_a_file_holds_tensors_and_says_whose_they_are(tmp_path):
    """safetensors, with the format and the model's fingerprint; the same model elsewhere has the same one."""
    learner = a_learner()
    learner.observe(PROSE)
    learner.save(tmp_path / "memory")
    learner.model.save_pretrained(tmp_path / "model")
    again = Learner(HopeForCausalLM.from_pretrained(tmp_path / "model"), byte_tokenizer())
    again.load(tmp_path / "memory")
    with safe_open(tmp_path / "memory", framework="pt") as file:
        assert file.metadata()["format"] == "nestling-memory-4" and len(file.metadata()["model"]) == 64


def truncated(path, _):
    path.write_bytes(path.read_bytes()[:-1000])


def only_the_start(path, _):
    path.write_bytes(path.read_bytes()[:5])


def emptied(path, _):
    path.write_bytes(b"")


def removed(path, _):
    path.unlink()


def a_text(path, _):
    path.write_text("It was the best of times.")


def of_another_model(path, folder):
    learner = a_learner(seed=1)
    learner.observe(PROSE)
    learner.save(path)


def of_another_configuration(path, folder):
    learner = a_learner(levels=[{"period": 6, "lr": 0.1}])
    learner.observe(PROSE)
    learner.save(path)


def a_model_file(path, folder):
    save_file({"weight": torch.zeros(2)}, path)


def without_a_tensor(path, folder):
    with safe_open(path, framework="pt") as file:
        tensors, metadata = load_file(path), file.metadata()
    tensors.popitem()
    save_file(tensors, path, metadata)


def a_folder(path, _):
    path.unlink()
    path.mkdir()


FAULTS = {
    truncated: "truncated",
    only_the_start: "truncated",
    emptied: "truncated",
    removed: "does not exist",
    a_text: "no memory file",
    of_another_model: "another model or configuration",
    of_another_configuration: "another model or configuration",
    a_model_file: "format None",
    without_a_tensor: "lacks",
    a_folder: "memory",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_file_that_cannot_be_used_harms_nothing(fault, tmp_path):
    """One clear sentence that names the file; the user's stream goes on as if it had not been tried."""
    path, learner, other = tmp_path / "memory", a_learner(), a_learner()
    learner.observe(PROSE)
    other.observe(PROSE)
    learner.save(path)
    fault(path, tmp_path)
    with pytest.raises(UserError, match=FAULTS[fault]) as caught:
        learner.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    same(learner.observe(CODE).losses, other.observe(CODE).losses)
    with pytest.raises(UserError):
        learner.load(path, user="new")
    assert learner.users() == ["default"]


@pytest.mark.parametrize("failing", ["os.replace", "os.fsync", "nestling.models.store.save_file"])
def test_a_save_that_fails_leaves_the_old_file(failing, tmp_path, monkeypatch):
    """A full disk, a crash at any step: the file is the one before, whole, and nothing else is left behind."""
    learner, path = a_learner(), tmp_path / "memory"
    learner.observe(PROSE)
    learner.save(path)
    before = path.read_bytes()
    learner.observe(CODE)

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(OSError, match="No space"):
            learner.save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["memory"]
    learner.save(path)
    assert path.read_bytes() != before


def test_a_place_that_cannot_be_written_raises(tmp_path):
    """A folder that is a file: one clear sentence."""
    (tmp_path / "file").write_text("")
    learner = a_learner()
    learner.observe(PROSE)
    with pytest.raises(UserError, match="cannot be written"):
        learner.save(tmp_path / "file" / "memory")


def test_saving_is_deterministic(tmp_path):
    """The same stream gives the same tensors in the file, and saving changes nothing."""
    one, other = a_learner(), a_learner()
    for i, learner in enumerate((one, other)):
        learner.observe(PROSE)
        learner.save(tmp_path / str(i))
    one.save(tmp_path / "0")
    same(load_file(tmp_path / "0"), load_file(tmp_path / "1"))


@pytest.mark.parametrize("window", [9, 5, None])
def test_a_memory_fits_a_model_with_another_recall(tmp_path, window):
    """What levels learnt is that of a model without one; what was recent goes on where the windows are the same."""
    first, path = a_learner("hope-recall"), tmp_path / "memory.safetensors"
    first.observe(PROSE)
    first.save(path)
    other = a_learner("hope-recall", recall=None if window is None else Recall(window, sharpness=2.0, share=0.6))
    other.load(path)
    same(other.memory(), first.memory())
    losses = [learner.observe(CODE).losses for learner in (first, other)]
    assert torch.equal(*losses) == (window == 9)
