"""What the shell promises to those who write an optimiser in it; what it promises users is in the contract."""

import copy

import pytest
import torch
from torch import nn

from nestling.optim.shell import Shell, below_one
from tests.helpers import close, same
from tests.optimizers import Momentum, give, loose, values


class Watching(Shell):
    """Steps of ones; keeps what it was called with."""

    def __init__(self, params, lr=0.1, **common):
        self.calls = []
        super().__init__(params, lr, size=1.0, **common)

    def check(self, group):
        super().check(group)
        below_one(size=group["size"] / 2)

    def initial_state(self, parameter, group):
        self.calls.append(("initial", parameter))
        return {"seen": torch.zeros((), dtype=torch.int64, device=parameter.device)}

    def directions(self, parameters, gradients, states, group):
        self.calls.append(("directions", parameters, gradients, [state["step"].item() for state in states]))
        return [torch.full_like(p, group["size"]) for p in parameters]


def test_a_step_is_the_stated_one():
    """`p <- (1 - lr wd) p - lr d`, with what the subclass says of a direction."""
    module = loose((2, 3))
    before, optimizer = values(module)["0"], Watching(module.parameters(), 0.1, weight_decay=0.5)
    give(module, 0)
    optimizer.step()
    close(module[0].detach(), (1 - 0.1 * 0.5) * before - 0.1, 1e-15)


def test_a_call_has_one_precision_and_one_device_and_nothing_empty():
    """Low precision comes with the float32 parameters, all in float32; float64 comes apart; so do parameters elsewhere."""
    dtypes = (torch.float64, torch.bfloat16, torch.float32, torch.float16, torch.float64)
    module = nn.ParameterList([torch.ones(2, dtype=dtype) for dtype in dtypes] + [torch.ones(0)])
    optimizer = Watching(module.parameters())
    give(module, 0)
    optimizer.step()
    calls = [call for call in optimizer.calls if call[0] == "directions"]
    found = [{t.dtype for t in [*parameters, *gradients]} for _, parameters, gradients, _ in calls]
    assert sorted(map(str, found)) == ["{torch.float32}", "{torch.float64}"]
    assert sorted(len(call[1]) for call in calls) == [2, 3]
    assert [call[1].dtype for call in optimizer.calls if call[0] == "initial"] == [
        torch.promote_types(dtype, torch.float32) for dtype in dtypes
    ]


def test_gradients_of_another_precision_come_in_that_of_the_parameter():
    """float32 gradients of a bfloat16 parameter are not rounded on the way; bfloat16 ones of a float64 parameter widen."""
    p, q = nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    p.grad_dtype, q.grad_dtype = torch.float32, torch.bfloat16
    p.grad, q.grad = torch.full((2,), 1 + 2**-20), torch.ones(2, dtype=torch.bfloat16)
    optimizer = Watching([p, q])
    optimizer.step()
    gradients = [call[2][0] for call in optimizer.calls if call[0] == "directions"]
    same(gradients, [p.grad, torch.ones(2, dtype=torch.float64)])


def test_each_parameter_counts_its_own_steps():
    """The count is of a parameter's gradients, not of calls."""
    module = loose((2,), (3,))
    optimizer = Watching(module.parameters())
    for index in range(3):
        give(module, index)
        if index == 1:
            module[0].grad = None
        optimizer.step()
    assert [call[3] for call in optimizer.calls if call[0] == "directions"] == [[1, 1], [2], [2, 3]]


def test_single_numbers_in_a_state_keep_their_precision():
    """Loading moves floating tensors to the precision of the model; counts stay whole, and the count of steps exact."""
    module = loose((2,))
    optimizer = Watching(module.parameters())
    give(module, 0)
    optimizer.step()
    other = Watching(loose((2,), dtype=torch.float32).parameters())
    other.load_state_dict(optimizer.state_dict())
    (state,) = other.state.values()
    assert state["seen"].dtype == torch.int64 and state["step"].dtype == torch.float64


def test_checks_see_complete_groups():
    """A subclass's `check` meets defaults and a group's own settings alike, and its refusal leaves no group behind."""
    module = loose((2,))
    for settings in ({"size": 2.0}, {"size": -1.0}):
        with pytest.raises(ValueError, match="size"):
            Watching([{"params": list(module), **settings}])
    optimizer = Watching(module.parameters())
    with pytest.raises(ValueError, match="size"):
        optimizer.add_param_group({"params": [torch.ones(2)], "size": 2.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_every_sparse_layout_is_refused(layout):
    """As a parameter, when the optimiser is made. (Gradients of dense parameters are sparse in one layout only.)"""
    with pytest.raises(ValueError, match=rf"a parameter is sparse \({layout}\); use sparse=False"):
        Watching([torch.eye(2).to_sparse(layout=layout)])


def test_one_bad_gradient_stops_all_groups():
    """The groups before the one that cannot be used have not moved either, nor has any count of steps."""
    module = loose((2,), (2, 2))
    before = values(module)
    optimizer = Momentum([{"params": [module[0]]}, {"params": [module[1]]}])
    give(module, 0)
    optimizer.step()
    kept, state = values(module), copy.deepcopy(optimizer.state_dict()["state"])
    module[1].grad = module[1].grad.to_sparse()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()
    same(values(module), kept)
    same(optimizer.state_dict()["state"], state)
    assert not torch.equal(before["0"], kept["0"])


def test_a_dictionary_of_another_shape_is_refused_as_torch_does():
    """Fewer groups or parameters than the optimiser has: torch's message, and the optimiser is as before."""
    module = loose((2,), (3,))
    optimizer = Momentum([{"params": [module[0]]}, {"params": [module[1]]}])
    for saved, match in (
        (Momentum(module.parameters()).state_dict(), "different number of parameter groups"),
        (Momentum([{"params": list(module)}, {"params": [torch.ones(1)]}]).state_dict(), "doesn't match the size"),
    ):
        with pytest.raises(ValueError, match=match):
            optimizer.load_state_dict(saved)
    give(module, 0)
    optimizer.step()
    assert not optimizer._optimizer_load_state_dict_pre_hooks


def test_counting_does_not_end():
    """Where float32 would stand still, at 2^24 steps, the count goes on; a power of it has float64's digits."""
    module = loose((2,))
    optimizer = Momentum(module.parameters())
    give(module, 0)
    optimizer.step()
    (state,) = optimizer.state.values()
    assert (1 - 0.999 ** state["step"]).item() == 1 - 0.999
    state["step"].fill_(2**24)
    optimizer.step()
    assert state["step"] == 2**24 + 1
