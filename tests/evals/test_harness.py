"""lm-eval through our adapter, on tasks of its own format in local files: the scores of a plain forward pass, and memory carried."""

import json

import pytest
import torch

from nestling.continual import Learner
from nestling.errors import UserError
from nestling.models import HopeForCausalLM
from nestling.train import byte_tokenizer
from tests.test_cli import nestling
from tests.tiny import model

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'nestling[eval]'")
from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from nestling.evals import harness
from nestling.evals.harness import NestlingLM

DOCS = [
    {"question": "The sea was calm and the ship", "choices": [" sailed", " flew over the hills", "."], "gold": 0},
    {"question": "Under the old bridge ran", "choices": [" a river", " ten"], "gold": 0},
    {"question": "It was", "choices": [" late", " seven in the evening of a long day"], "gold": 1},
]
TEXTS = [{"text": "All that is gold does not glitter, " * n} for n in (1, 3, 2)]
COMMON = (
    "target_delimiter: ''\ndataset_path: json\ntest_split: test\ndataset_kwargs:\n  data_files:\n    test: {file}\n"
    "metadata:\n  version: 1\n"
)
CHOICE = 'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{gold}}"\n'
ROLLING = 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list:\n  - metric: bits_per_byte\n'
ANSWER = (
    'output_type: generate_until\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{choices[0]}}"\n'
    'generation_kwargs:\n  until: ["e"]\n  max_gen_toks: 5\nmetric_list:\n  - metric: exact_match\n'
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of tasks: choices (twice, under two names), perplexity and answers."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in (("docs", DOCS), ("texts", TEXTS)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    kinds = {"choices": CHOICE, "again": CHOICE, "perplexity": ROLLING, "answers": ANSWER}
    for name, kind in kinds.items():
        file = folder / ("texts.jsonl" if kind == ROLLING else "docs.jsonl")
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{COMMON.format(file=file)}{kind}")
    return folder


@pytest.fixture(scope="module")
def tasks(folder):
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nothing is asked of a hub, and caches are the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)


def reader(name="hope-attention"):
    """In float64, so that what is compared are the ways to read and not their rounding."""
    return model(name, vocab_size=384)


def scores(tasks, names, lm):
    """Of every task the responses, a list a document."""
    found = simple_evaluate(model=lm, tasks=names, task_manager=tasks, bootstrap_iters=0, verbosity="ERROR")
    return {name: [sample["resps"] for sample in found["samples"][name]] for name in names}


def ids(text):
    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


def plain(net, context, continuation, memory=None):
    """Log-likelihood of a continuation by one forward pass of one row, and whether it is the likeliest."""
    row = torch.tensor([context + continuation])
    with torch.no_grad():
        logits = net(row, past_key_values=net.new_cache(memory), use_cache=True).logits[0, len(context) - 1 : -1]
    target = row[0, len(context) :]
    chosen = logits.log_softmax(-1).gather(1, target[:, None])
    return chosen.sum().item(), bool((logits.argmax(-1) == target).all())


def agree(found, expected):
    """As the issue asks: within 1e-5."""
    assert len(found) == len(expected)
    for (value, greedy), (wanted, likeliest) in zip(found, expected, strict=True):
        assert value == pytest.approx(wanted, abs=1e-5) and greedy == likeliest


@pytest.mark.parametrize(("batch_size", "piece"), [(1, 1024), (8, 1024), (8, 7)])
@pytest.mark.parametrize("name", ["hope", "hope-attention", "transformer++", "llama"])
def test_the_scores_are_those_of_a_plain_forward_pass(name, batch_size, piece, tasks, monkeypatch):
    """Of choices and of whole texts; in batches of rows of different lengths, and by a cache in pieces."""
    monkeypatch.setattr(harness, "PIECE", piece)
    net = reader(name)
    found = scores(tasks, ["choices", "perplexity"], NestlingLM(net, tokenizer=byte_tokenizer(), batch_size=batch_size))
    for document, resps in zip(DOCS, found["choices"], strict=True):
        expected = [plain(net, ids(document["question"]), ids(choice)) for choice in document["choices"]]
        agree([resp for (resp,) in resps], expected)
    for document, ((log_likelihood,),) in zip(TEXTS, found["perplexity"], strict=True):
        wanted = plain(net, [byte_tokenizer().eos_token_id], ids(document["text"]))[0]
        assert log_likelihood == pytest.approx(wanted, abs=1e-5 * len(document["text"]))


def test_a_task_carries_its_memory_as_a_learner_does(tasks):
    """A document is scored with what a learner has who has read those before it, each a context of its own."""
    net = reader()
    lm = NestlingLM(net, tokenizer=byte_tokenizer(), reset="task", batch_size=8)
    found, fresh = (
        scores(tasks, ["choices", "again"], lm),
        scores(tasks, ["choices"], NestlingLM(net, tokenizer=byte_tokenizer())),
    )
    learner = Learner(net, byte_tokenizer())
    for number, (document, resps) in enumerate(zip(DOCS, found["choices"], strict=True)):
        memory = learner.memory()
        expected = [plain(net, ids(document["question"]), ids(choice), memory) for choice in document["choices"]]
        agree([resp for (resp,) in resps], expected)
        assert (resps == fresh["choices"][number]) == (number == 0)
        learner.observe(document["question"])
        learner.end_context()
    assert found["again"] == found["choices"]  # another task begins anew


def test_never_carries_the_memory_into_the_next_task(tasks):
    net = reader()
    found = scores(tasks, ["choices", "again"], NestlingLM(net, tokenizer=byte_tokenizer(), reset="never"))
    assert found["again"][0] != found["choices"][0]
    one = scores(tasks, ["choices"], NestlingLM(net, tokenizer=byte_tokenizer(), reset="task"))
    assert found["choices"] == one["choices"]


@pytest.mark.parametrize("reset", harness.RESETS)
def test_answers_stop_where_the_task_says(reset, tasks):
    """Those of `generate`, without the stop sequence; carried memory changes only later ones' state."""
    net = reader()
    found = scores(tasks, ["answers"], NestlingLM(net, tokenizer=byte_tokenizer(), reset=reset))["answers"]
    row = torch.tensor([ids(DOCS[0]["question"])])
    out = net.generate(row, max_new_tokens=5, do_sample=False, past_key_values=net.new_cache())
    text = byte_tokenizer().decode(out[0, row.shape[1] :], skip_special_tokens=True)
    assert found[0] == [[text.split("e")[0]]]


def test_it_is_registered_and_loads_a_folder(tmp_path):
    """As lm-eval makes it from --model_args."""
    reader().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    lm = get_model("nestling").create_from_arg_string(
        f"pretrained={tmp_path},reset=task", {"batch_size": 2, "device": "cpu"}
    )
    assert isinstance(lm.model, HopeForCausalLM) and (lm.reset, lm.batch_size) == ("task", 2)


def test_the_command_runs_tasks_and_says_which_it_does_not_know(folder, tmp_path):
    """Results as JSON, with the policy; an unknown task is one sentence."""
    reader().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    common = ["eval", "lm-eval", "--model", str(tmp_path / "model"), "--include_path", str(folder), "--reset", "task"]
    done = nestling(*common, "--tasks", '["choices"]', "--limit", "2", "--out", str(tmp_path / "out" / "found.json"))
    assert done.returncode == 0 and "acc" in done.stdout, done.stderr
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert found["n-samples"]["choices"]["effective"] == 2 and found["config"]["reset"] == "task"
    done = nestling(*common, "--tasks", '["choises"]')
    assert done.returncode == 2 and "unknown task choises" in done.stderr


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hope-attention", {"reset": "always"}, "reset='always' is unknown; choose doc, task, never"),
        ("hope-attention", {"batch_size": "auto"}, "batch_size='auto' must be a number"),
        ("hope-attention", {"batch_size": 0}, "batch_size=0 must be a number"),
        ("transformer++", {"reset": "task"}, "reset='task' carries a memory, and the model has levels=0"),
    ],
)
def test_settings_that_do_not_fit(name, options, message):
    with pytest.raises(UserError, match=message):
        NestlingLM(reader(name), tokenizer=byte_tokenizer(), **options)


def test_folders_that_hold_no_such_model(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        NestlingLM(str(tmp_path / "nothing"))
