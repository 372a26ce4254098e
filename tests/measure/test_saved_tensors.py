import torch
from torch import nn

from apla_mm.measure import SavedTensors


def test_each_storage_counts_once_and_parameters_do_not():
    layer = nn.Linear(8, 8)
    x = torch.randn(4, 8)
    with SavedTensors(ignore=layer.parameters()) as saved:
        y = layer(x).tanh()  # keeps x and its own output
        z = y * 2 + y.sum()
    assert saved.bytes == (4 * 8 + 4 * 8) * 4
    del z
    with SavedTensors(ignore=layer.parameters()) as saved:
        h = x[:2]
        layer(h).sum()
        layer(h).sum()
    assert saved.bytes == 4 * 8 * 4  # the whole storage that a view keeps alive
    with SavedTensors() as saved:
        layer(x)
        layer(layer(x))
    assert saved.bytes == (4 * 8 + 4 * 8 + 8 * 8) * 4


def test_nothing_is_saved_without_gradients():
    layer = nn.Linear(8, 8).requires_grad_(False)
    with SavedTensors() as saved:
        layer(torch.randn(4, 8))
    assert saved.bytes == 0


def test_backward_works_on_what_was_counted():
    layer = nn.Linear(8, 8)
    x = torch.randn(4, 8)
    with SavedTensors(ignore=layer.parameters()):
        loss = layer(x).square().sum()
    loss.backward()
    counted = layer.weight.grad.clone()
    layer.zero_grad()
    layer(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, counted)


def test_exception_leaves_no_hooks_behind():
    class Stop(Exception):
        pass

    try:
        with SavedTensors() as saved:
            raise Stop
    except Stop:
        pass
    torch.randn(3, requires_grad=True).exp()
    assert saved.bytes == 0
