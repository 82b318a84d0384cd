"""Heads: the classic ones are what their equations say, and a memory has them as special cases, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.continual.heads import (
    Descent,
    Discriminant,
    Head,
    Joint,
    MemoryHead,
    NearestClassMean,
    OnFeatures,
    RandomReLU,
    RanPAC,
    Replay,
    StreamingLDA,
    adam,
    gaussian,
    orthogonal,
    plain,
    sgd,
)
from nestling.memory import DeltaRule, LeastSquares
from tests.helpers import close

D, LABELS = 6, (7, 2, 40, 3)  # in the order in which they come


@pytest.fixture(scope="module")
def stream() -> list[tuple[Tensor, Tensor]]:
    """Batches of awkward sizes, two classes after two, of unequal size, with means of their own and one covariance."""
    draws = torch.Generator().manual_seed(1)
    mix = torch.randn(D, D, generator=draws, dtype=torch.float64)
    batches = []
    for pair, sizes in ((LABELS[:2], (1, 5, 17)), (LABELS[2:], (3, 29))):
        for size in sizes:
            labels = torch.tensor(pair)[torch.randint(2, (size,), generator=draws)]
            labels[0] = pair[0]
            x = torch.randn(size, D, generator=draws, dtype=torch.float64) @ mix + labels[:, None].sin() * 3
            batches.append((x, labels))
    batches[-1][1][1] = LABELS[-1]
    return batches


@pytest.fixture(scope="module")
def whole(stream) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in stream]), torch.cat([labels for _, labels in stream])


@pytest.fixture(scope="module")
def asked() -> Tensor:
    return 3 * torch.randn(50, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def taught(head: Head, batches) -> Head:
    for x, labels in batches:
        head.observe(x, labels)
    return head


def one_hot(labels: Tensor) -> Tensor:
    return (labels[:, None] == torch.tensor(LABELS)).double()


def lda(x: Tensor, labels: Tensor, asked: Tensor, shrinkage: float) -> Tensor:
    """The discriminant of Gaussian classes, class by class: the definition."""
    means = [x[labels == label].mean(0) for label in LABELS]
    apart = torch.cat([x[labels == label] - mean for label, mean in zip(LABELS, means, strict=True)])
    covariance = (1 - shrinkage) * apart.mT @ apart / len(x) + shrinkage * torch.eye(x.shape[1], dtype=x.dtype)
    inverse = torch.linalg.inv(covariance)
    return torch.stack([asked @ inverse @ mean - 0.5 * mean @ inverse @ mean for mean in means], -1)


def test_the_classic_heads_are_their_definitions(stream, whole, asked):
    """Over a stream whose classes come one after the other, against everything at once."""
    x, labels = whole
    distances = torch.stack([(asked - x[labels == label].mean(0)).square().sum(-1) for label in LABELS], -1)
    found = taught(NearestClassMean(D), stream).predict(asked)
    assert torch.equal(found, torch.tensor(LABELS)[distances.argmin(-1)])
    close(taught(StreamingLDA(D, 0.03), stream).scores(asked), lda(x, labels, asked, 0.03))
    features = RandomReLU(25, D)
    phi, codes = features(x), one_hot(labels)
    solution = torch.linalg.solve(phi.mT @ phi + 0.7 * torch.eye(25, dtype=x.dtype), phi.mT @ codes)
    close(taught(RanPAC(features, 0.7), stream).scores(asked), features(asked) @ solution)


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
@pytest.mark.parametrize("directions", [gaussian, orthogonal])
def test_ranpac_is_a_memory_of_random_features(stream, asked, chunk_size, directions):
    """The same features and ridge: the same weight, after every batch, with classes that nobody announced."""
    features = RandomReLU(25, D, 3, directions)
    other, memory = RanPAC(features, 0.7), MemoryHead(features, 25, LeastSquares(0.7), chunk_size=chunk_size)
    for x, labels in stream:
        other.observe(x, labels)
        memory.observe(x, labels)
        close(memory.scores(asked), other.scores(asked))
        close(memory.optimal.weight, other.weight())


@pytest.mark.parametrize("chunk_size", [1, 64])
def test_slda_is_a_memory_of_plain_features_read_as_a_discriminant(stream, whole, asked, chunk_size):
    """With `shrinkage / (1 - shrinkage) = ridge / N`; scores in proportion, by the number of examples and the share of the covariance."""
    count, ridge = len(whole[0]), 0.4
    shrinkage = ridge / (count + ridge)
    memory = taught(MemoryHead(plain, D, LeastSquares(ridge), Discriminant(), chunk_size), stream)
    close(memory.scores(asked) * count / (1 - shrinkage), taught(StreamingLDA(D, shrinkage), stream).scores(asked))


def test_the_discriminant_is_one_of_the_features_behind_any_map(stream, whole, asked):
    """Linear discriminant analysis of random features, which is neither RanPAC nor SLDA."""
    x, labels = whole
    features, ridge = RandomReLU(9, D), 0.4
    shrinkage = ridge / (len(x) + ridge)
    memory = taught(MemoryHead(features, 9, LeastSquares(ridge), Discriminant()), stream)
    expected = lda(features(x), labels, features(asked), shrinkage)
    close(memory.scores(asked) * len(x) / (1 - shrinkage), expected)


def test_classes_of_few_examples_answer_weakly_unless_read_as_a_discriminant():
    """Two equal clouds on either side, one of them met forty times as often: the middle between the means is the border."""
    draws = torch.Generator().manual_seed(0)
    clouds = [torch.randn(n, 2, generator=draws, dtype=torch.float64) + side for n, side in ((4000, -1.0), (100, 1.0))]
    x, labels = torch.cat(clouds), torch.tensor([0, 1]).repeat_interleave(torch.tensor([4000, 100]))
    asked = torch.full((1, 2), 0.3, dtype=torch.float64)
    constant = lambda x: F.pad(x, (0, 1), value=1.0)  # noqa: E731
    largest, fair = MemoryHead(constant, 3), MemoryHead(constant, 3, readout=Discriminant())
    for head in (largest, fair):
        head.observe(x, labels)
    assert largest.predict(asked).item() == 0 and fair.predict(asked).item() == 1


HEADS = {
    "nearest class mean": lambda: NearestClassMean(D),
    "SLDA": lambda: StreamingLDA(D, 0.01),
    "RanPAC": lambda: RanPAC(RandomReLU(12, D), 0.5),
    "memory": lambda: MemoryHead(RandomReLU(12, D), 12, LeastSquares(0.5)),
    "discriminant": lambda: MemoryHead(RandomReLU(12, D), 12, LeastSquares(0.5), Discriminant()),
}
DESCENDING = {
    "delta rule": lambda: MemoryHead(plain, D, DeltaRule(exact=True)),
    "probe": lambda: Descent(D, sgd(0.1)),
    "MLP": lambda: Descent(D, adam(0.01), hidden=8),
    "replay": lambda: Replay(D, adam(0.01), size=4000),
    "joint": lambda: Joint(D, 0.01),
}


@pytest.mark.parametrize("name", HEADS)
def test_neither_order_nor_batches_matter_to_what_is_solved(stream, whole, asked, name):
    """One by one, in the stream's batches, and all at once in another order: the same predictions and scores."""
    x, labels = whole
    expected = taught(HEADS[name](), stream)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(4))
    singles = zip(x.split(1), labels.split(1), strict=True)
    for batches in (singles, [(x[order], labels[order])]):
        head = taught(HEADS[name](), batches)
        columns = (head.met.labels[:, None] == expected.met.labels).long().argmax(0)
        close(head.scores(asked)[:, columns], expected.scores(asked), 1e-8)
        assert torch.equal(head.predict(asked), expected.predict(asked))


@pytest.mark.parametrize("name", [*HEADS, *DESCENDING])
def test_the_label_space_grows_and_nothing_outside_it_is_said(stream, asked, name):
    """Only what was met is predicted, only what is allowed where the task is known; bytes are counted; a prediction changes nothing."""
    head = (HEADS | DESCENDING)[name]()
    with pytest.raises(ValueError, match="no class was met yet"):
        head.predict(asked)
    sizes = []
    for x, labels in stream:
        head.observe(x, labels)
        met = head.met.labels
        assert set(head.predict(asked).tolist()) <= set(met.tolist()) and head.scores(asked).shape == (50, len(met))
        sizes.append((head.bytes(), head.parameters()))
    assert head.met.labels.tolist() == list(LABELS)
    assert sizes[-1] > sizes[0] > (0, 0)
    assert set(head.predict(asked, torch.tensor([40, 3])).tolist()) <= {40, 3}
    with pytest.raises(ValueError, match=r"none of the classes \[5\] was met"):
        head.predict(asked, torch.tensor([5]))
    with pytest.raises(ValueError, match="a head takes"):
        head.observe(asked, torch.zeros(3))
    assert torch.equal(head.predict(asked), head.predict(asked))


def test_random_features_are_of_the_arc_cosine_kernel():
    """On average, with either kind of directions; and orthogonal ones are nearer to it."""
    x, y = F.normalize(torch.randn(2, 300, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)
    cosine = (x * y).sum(-1)
    kernel = ((1 - cosine**2).sqrt() + (torch.pi - cosine.arccos()) * cosine) / torch.pi
    error = {}
    for directions in (gaussian, orthogonal):
        features = [RandomReLU(64, 16, seed, directions) for seed in range(40)]
        products = torch.stack([(f(x) * f(y)).sum(-1) for f in features])
        assert (products.mean(0) - kernel).abs().mean() < 0.02
        error[directions] = (products - kernel).square().mean()
    assert error[orthogonal] < 0.8 * error[gaussian]


def test_a_probe_grows_its_optimiser_with_its_classes(stream):
    """What Adam keeps of the old classes stays, the new ones begin at zero; a step of gradient descent is the textbook's."""
    head = Descent(D, adam(0.01))
    head.observe(*stream[0])
    head.observe(*stream[1])
    weight = head.output[0]
    before = head.optimizer.state[weight]["exp_avg"].clone()
    head.met.add(torch.tensor([99]))
    head.grow()
    after = head.optimizer.state[weight]["exp_avg"]
    assert torch.equal(after[:2], before) and not after[2].any() and not weight[2].any()
    plain_step = Descent(D, sgd(0.1))
    x, labels = stream[1]
    plain_step.observe(x, labels)
    codes = (labels[:, None] == plain_step.met.labels).float()
    close(plain_step.output[0].detach(), 0.1 * ((codes - 0.5) / len(x)).mT @ x.float(), 1e-5)


def test_replay_keeps_to_its_bytes_and_every_example_alike(whole):
    """The buffer is what the size leaves; over many runs each of the first examples is in it as often as each of the last."""
    x, labels = (part.repeat(4, *[1] * (part.dim() - 1)) for part in whole)
    size, found = 2500, torch.zeros(len(x))
    x = torch.arange(len(x), dtype=torch.float64)[:, None].expand(-1, D)  # an example is its place
    for seed in range(60):
        head = Replay(D, sgd(0.0), size, seed=seed)
        head.observe(x[:8], torch.tensor(LABELS).repeat(2))  # all classes, so that the room is the same from here on
        for places in torch.arange(8, len(x)).split(9):
            head.observe(x[places], labels[places])
            assert size - 2 * (4 * D + 2) < head.bytes() <= size or len(head.features) == places[-1] + 1
        found[head.features[:, 0].long()] += 1
    share = head.capacity() / len(x)
    assert abs(found[: len(x) // 2].mean() / 60 - share) < 0.03 and abs(found[len(x) // 2 :].mean() / 60 - share) < 0.03
    with pytest.raises(ValueError, match="leaves no room for an example"):
        Replay(D, sgd(0.1), 50).observe(x[:8], torch.tensor(LABELS).repeat(2))


def test_joint_training_is_where_the_loss_is_flat(stream, whole):
    """The gradient over all examples is zero there, whatever the order in which they came."""
    head = taught(Joint(D, 0.01, steps=500), stream)
    head.predict(whole[0])
    weight = head.weight.double().requires_grad_()
    logits = whole[0] @ weight[:-1] + weight[-1]
    loss = F.cross_entropy(logits, one_hot(whole[1]).argmax(-1)) + 0.005 * weight[:-1].square().sum()
    assert torch.autograd.grad(loss, weight)[0].abs().max() < 1e-3


def test_a_probe_forgets_and_a_memory_does_not():
    """Two tasks of two classes each, far apart: the sequential probe answers with the last task's classes alone."""
    draws = torch.Generator().manual_seed(0)
    means = 3 + 1.5 * F.one_hot(torch.arange(4), D).float()
    tasks = [(means[c] + 0.3 * torch.randn(200, D, generator=draws), torch.full((200,), c)) for c in range(4)]
    asked, right = means, torch.arange(4)
    probe, memory = Descent(D, sgd(0.1)), MemoryHead(plain, D, readout=Discriminant())
    for first, second in (tasks[:2], tasks[2:]):
        x, labels = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
        order = torch.randperm(len(x), generator=draws)
        for places in order.split(10):
            probe.observe(x[places], labels[places])
            memory.observe(x[places], labels[places])
    assert set(probe.predict(asked).tolist()) == {2, 3} and torch.equal(memory.predict(asked), right)


def test_behind_a_backbone_inputs_are_what_it_takes():
    """Texts, for instance."""
    words = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    method = OnFeatures(lambda texts: torch.tensor([words[text] for text in texts]), NearestClassMean(2))
    method.observe(["a", "b", "a"], torch.tensor([5, 6, 5]))
    assert method.predict(["b", "a"]).tolist() == [6, 5]
    assert method.bytes() == method.head.bytes() == 2 * 2 * 8 + 2 * 8 and method.parameters() == 4


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: StreamingLDA(D, 1.0), "shrinkage=1.0 must be in"),
        (lambda: RanPAC(RandomReLU(4, D), 0.0), "ridge=0.0 must be above 0"),
        (lambda: RandomReLU(0, D), "n=0"),
        (lambda: MemoryHead(plain, D, DeltaRule(), Discriminant()), "use rule=LeastSquares"),
    ],
)
def test_what_has_no_meaning_is_told(make, told):
    """With what to do."""
    with pytest.raises(ValueError, match=told):
        make()
