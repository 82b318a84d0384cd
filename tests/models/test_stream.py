"""A stream: whatever its chunks, its interruptions and its length, what is carried on depends on the tokens alone."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nestling.continual import Learner
from nestling.errors import UserError
from nestling.layers import Attention
from nestling.models.stream import block_of
from nestling.ops.state import named_tensors, nbytes
from nestling.train import byte_tokenizer, encode, file_tokens
from tests.helpers import close
from tests.tiny import LEARNERS, VOCAB, model, read, text

BLOCK = 12
IDS = text(1, 70)[0]


def carried(stream):
    """Everything that a stream goes on with."""
    cache = stream.cache
    return named_tensors({"memory": cache.memory, "session": cache.session, "next": stream.logits})


def equal(one, other):
    """To the bit, the mean loss included."""
    a, b = carried(one), carried(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert one.position == other.position and one.loss == other.loss


@pytest.mark.parametrize("name", LEARNERS)
def test_a_stream_is_one_reading(name):
    """Its state is that of one call, and it goes on as that does; the loss is the mean of its predictions."""
    net = model(name)
    stream = net.stream(IDS, block=BLOCK).read()
    logits, cache = read(net, IDS[None])
    losses = torch.nn.functional.cross_entropy(logits[0, :-1], IDS[1:])
    assert stream.loss == pytest.approx(losses.item(), abs=1e-9)
    more = text(1, 20, seed=1)
    close(read(net, more, stream.cache)[0], read(net, more, cache)[0])


@pytest.mark.parametrize("name", LEARNERS)
def test_an_interrupted_stream_goes_on_bit_for_bit(name, tmp_path):
    """Stopped where no block, period or chunk ends, and taken up from the file by a new stream of other chunks."""
    net, path = model(name), tmp_path / "at.safetensors"
    net.stream((int(token) for token in IDS[:31]), path, block=BLOCK).read()
    equal(net.stream(IDS.split(7), path, block=BLOCK).read(), net.stream(IDS, block=BLOCK).read())


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_no_cut_and_no_stop_changes_anything(tmp_path_factory, data):
    """Chunks of any sizes, none included; stopped and saved at any tokens."""
    net, path = model("hope-attention"), tmp_path_factory.mktemp("stream") / "at.safetensors"
    stops = sorted(data.draw(st.lists(st.integers(1, len(IDS) - 1), max_size=3, unique=True)))
    for stop in [*stops, len(IDS)]:
        sizes = data.draw(st.lists(st.integers(0, 30), max_size=6))
        ends = [min(sum(sizes[:i]), stop) for i in range(len(sizes) + 1)] + [stop]
        pieces = [IDS[start:end] for start, end in pairwise(ends)]
        stream = net.stream(pieces, path, every=data.draw(st.integers(1, 40)), block=BLOCK).read()
    equal(stream, net.stream(IDS, block=BLOCK).read())


def test_every_kind_of_chunk():
    """Tensors and arrays of any integer type, lists, single numbers, and all of these mixed."""
    net = model("hope-attention")
    whole = net.stream(IDS, block=BLOCK).read()
    array = IDS.numpy()
    mixed = iter([IDS[:5], int(IDS[5]), array[6], IDS[7], [], array[8:20].astype("uint16"), tuple(IDS[20:].tolist())])
    for tokens in (array, array.astype("uint8"), IDS.int(), IDS.tolist(), list(IDS), [IDS], mixed):
        equal(net.stream(tokens, block=BLOCK).read(), whole)


READER = """
import sys, torch
from nestling.models import HopeForCausalLM
torch.set_num_threads(1)
folder = sys.argv[1]
net = HopeForCausalLM.from_pretrained(f"{folder}/model").double()
for _ in net.stream(torch.load(f"{folder}/ids.pt"), f"{folder}/at.safetensors", every=1, block=12):
    print("block", flush=True)
"""


def test_killed_at_any_moment_it_goes_on_bit_for_bit(tmp_path):
    """A process that reads is killed by SIGKILL while it reads or writes; another one finishes."""
    ids = text(1, 900)[0]
    net = model("hope-attention")
    net.save_pretrained(tmp_path / "model")
    torch.save(ids, tmp_path / "ids.pt")
    command = [sys.executable, "-c", READER, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for _ in range(5):
            process.stdout.readline()
        time.sleep(torch.rand(()).item() * 0.1)
        process.send_signal(signal.SIGKILL)
    resumed = net.stream(ids, tmp_path / "at.safetensors", block=BLOCK)
    assert 5 * BLOCK <= resumed.position < len(ids)
    equal(resumed.read(), net.stream(ids, block=BLOCK).read())


def test_what_is_kept_does_not_grow():
    """Neither the state nor what was taken from the source ahead; by file and in memory."""
    net, taken, sizes = model("hope"), [], []

    def source():
        for i in range(15):
            taken.append(i)
            yield text(1, BLOCK, seed=i)[0]

    for progress in (stream := net.stream(source(), block=BLOCK)):
        assert len(taken) * BLOCK <= progress.position + BLOCK
        sizes.append(nbytes((stream.cache.session, stream.cache.memory)))
    assert len(sizes) == 15 and max(sizes[2:]) == sizes[2] == sizes[-1]


@pytest.mark.parametrize("start", [10_000_000, 123_456_789])
def test_attention_is_as_exact_after_any_number_of_tokens(start):
    """Distances decide and not positions: in float32, too, where positions times frequencies are rounded by radians."""
    torch.manual_seed(0)
    layer, x = Attention(16, 2, window=8), torch.randn(1, 20, 16)
    state = layer.init_state(1)
    late = layer(x, replace(state, position=state.position + start))[0]
    close(late, layer(x, state)[0], 1e-5)


def test_a_stream_can_be_asked():
    """`generate` goes on from its cache as from one that has counted; its checkpoint is a memory of a learner."""
    net, question = model("hope-attention", vocab_size=384).float(), text(1, 5, seed=2)
    stream = net.stream(IDS, block=BLOCK).read()
    found = net.generate(question, past_key_values=stream.cache, max_new_tokens=6, do_sample=False)
    cache = read(net, IDS[None])[1]
    heard = [question, *found[:, 5:-1].split(1, dim=1)]
    assert [read(net, ids, cache)[0][0, -1].argmax().item() for ids in heard] == found[0, 5:].tolist()
    assert stream.position == len(IDS) and stream.cache.get_seq_length() == 0


def test_a_checkpoint_is_a_memory(tmp_path):
    """A learner that loads it knows what one that has observed the stream knows."""
    net, path = model("hope-attention", vocab_size=384).float(), tmp_path / "at.safetensors"
    net.stream(IDS, path, block=BLOCK).read()
    loaded, observing = (Learner(net, byte_tokenizer()) for _ in range(2))
    loaded.load(path)
    observing.observe(IDS)
    prose = encode(byte_tokenizer(), "It was the best of times.")
    assert torch.allclose(loaded.observe(prose).losses, observing.observe(prose).losses, atol=1e-5)


def test_nothing_but_the_tokens_of_a_bad_chunk_is_lost(tmp_path):
    """A token that does not exist ends a stream where it stood, and the checkpoint before it stays."""
    net, path = model("hope-attention"), tmp_path / "at.safetensors"
    with pytest.raises(UserError, match=f"token {VOCAB}; the model's are 0 to {VOCAB - 1}"):
        net.stream([IDS[:40], torch.tensor([VOCAB])], path, every=1, block=BLOCK).read()
    equal(net.stream(IDS, path, block=BLOCK).read(), net.stream(IDS, block=BLOCK).read())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("to be or not", "made of token ids, and str was given"),
        (7, "made of token ids, and int was given"),
        ([["a", "b"]], "no array of token ids|is .* give integers"),
        (["to be"], "it holds a str"),
        ([None], "it holds a NoneType"),
        (torch.rand(4), "torch.float32; give integers"),
        (torch.ones(2, 3, dtype=torch.int64), "give integers, one dimension"),
        (np.array([True]), "torch.bool; give integers"),
        ([[1, 2], [3, -1]], "token -1; the model's are 0 to"),
    ],
    ids=["text", "number", "strings", "string", "none", "floats", "matrix", "bools", "negative"],
)
def test_what_is_no_stream_of_tokens(tokens, message):
    with pytest.raises(UserError, match=message):
        model("hope-attention").stream(tokens).read()


@pytest.mark.parametrize("what", ["cut off", "empty", "memory", "model", "tokens", "shorter", "block", "lacking"])
def test_a_checkpoint_that_does_not_fit(what, tmp_path):
    """One sentence says what is wrong, and the file is left as it is."""
    net, path = model("hope-attention", vocab_size=384).float(), tmp_path / "at.safetensors"
    net.stream(IDS, path, block=BLOCK).read()
    ids, block, messages = IDS, BLOCK, {"cut off": "truncated", "empty": "truncated"}
    messages |= {"memory": "no checkpoint of a stream", "model": "another model", "tokens": "are not those that"}
    messages |= {
        "shorter": "ends after 50 tokens, and .* had read 70",
        "block": "give block=12",
        "lacking": "lacks 'whole'",
    }
    if what in ("cut off", "empty"):
        path.write_bytes(path.read_bytes()[: 1000 if what == "cut off" else 0])
    elif what == "memory":
        Learner(net, byte_tokenizer()).save(path)
    elif what == "model":
        net = model("hope-attention", seed=1, vocab_size=384).float()
    elif what == "tokens":
        ids = IDS.flip(0)
    elif what == "shorter":
        ids = IDS[:50]
    elif what == "block":
        block = 18
    else:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        save_file({name: tensor for name, tensor in tensors.items() if name != "stream/whole"}, path, metadata)
    before = path.read_bytes()
    with pytest.raises(UserError, match=messages[what]):
        net.stream(ids, path, block=block).read()
    assert path.read_bytes() == before


def test_settings_that_no_stream_can_have(tmp_path):
    """Numbers below 1, a mixer that keeps everything, a folder that cannot be made."""
    net = model("hope-attention")
    for settings_ in ({"every": 0}, {"block": 0}):
        with pytest.raises(UserError, match="must be at least 1"):
            net.stream(IDS, **settings_)
    with pytest.raises(ValueError, match="give the configuration a sliding_window"):
        model("hope-attention", sliding_window=None).stream(IDS)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        net.stream(IDS, tmp_path / "file" / "at.safetensors").read()


def test_a_call_is_whole_periods_and_its_logits_are_bounded():
    """Of a large vocabulary few tokens are read at once, two periods at the least."""
    net = model("hope-attention")
    assert block_of(net, VOCAB, None) % net.levels[0].period == 0
    assert block_of(net, 2**22, None) == 2 * net.levels[0].period


@pytest.mark.parametrize("characters", [1, 7, 2**16])
def test_a_file_is_read_piece_by_piece(characters, tmp_path):
    """The pieces are the file's bytes in order, whatever characters and lines they cut."""
    path, words = tmp_path / "text.txt", "Ästhetik\n\nund €uro\nohne Ende"
    path.write_text(words, encoding="utf-8")
    pieces = list(file_tokens(path, byte_tokenizer(), characters))
    assert torch.equal(torch.cat(pieces), encode(byte_tokenizer(), words))
    assert max(map(len, pieces)) <= 4 * characters


def test_files_that_hold_no_text(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xff")
    for name, message in (("none.txt", "does not exist"), ("empty.txt", "is empty"), ("latin.txt", "not UTF-8")):
        with pytest.raises(UserError, match=message):
            list(file_tokens(tmp_path / name, byte_tokenizer()))


@pytest.mark.parametrize("name", ["hope-attention", "hope-recall", "llama"])
def test_a_stream_that_was_taken_up_has_read_all_of_it(name, tmp_path):
    """Before another token comes: tokens that fill no block are in what it answers from, too."""
    net, path = model(name), tmp_path / "at.safetensors"
    read = net.stream(IDS[:31], path, block=BLOCK).read()
    equal(net.stream([], path, block=BLOCK), read)
