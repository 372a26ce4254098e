from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from apla_mm.measure import SavedTensors


def test_each_storage_counts_once_and_parameters_do_not():
    layer = nn.Linear(8, 8)
    x = torch.randn(4, 8)
    with SavedTensors(ignore=layer.parameters()) as saved:
        y = layer(x).tanh()  # keeps x and its own output
        loss = (y * 2 + y.sum()).sum()
    assert saved.bytes == (4 * 8 + 4 * 8 + 1) * 4  # and the result
    assert loss.requires_grad
    with SavedTensors(ignore=layer.parameters()) as saved:
        h = x[:2]
        held = [layer(h).sum(), layer(h).sum()]
    assert saved.bytes == (4 * 8 + len(held)) * 4  # the whole storage that a view keeps alive, and the results
    with SavedTensors() as saved:
        held = [layer(x).sum(), layer(layer(x)).sum()]
    assert saved.bytes == (4 * 8 + 4 * 8 + 8 * 8 + len(held)) * 4


def test_nothing_is_saved_without_gradients():
    layer = nn.Linear(8, 8).requires_grad_(False)
    with SavedTensors() as saved:
        layer(torch.randn(4, 8))
    assert saved.bytes == 0


def test_what_others_keep_is_counted():
    layer = nn.Linear(8, 8).requires_grad_(False)
    x, cache = torch.randn(4, 8), []
    with SavedTensors() as saved:
        cache.append(layer(x)[:1])  # a view keeps its storage
        layer(x)
        cache[0].mul_(2)
        cache.append(x.view(-1))
    assert saved.bytes == 4 * 8 * 4


def test_a_cache_of_selective_checkpointing_is_counted():
    def keep_exp(context, operator, *args, **kwargs):
        exp = operator is torch.ops.aten.exp.default
        return CheckpointPolicy.MUST_SAVE if exp else CheckpointPolicy.PREFER_RECOMPUTE

    x = torch.randn(16, requires_grad=True)
    contexts = partial(create_selective_checkpoint_contexts, keep_exp)
    with SavedTensors() as saved:
        loss = checkpoint(lambda t: t.sin().exp().cos(), x, use_reentrant=False, context_fn=contexts).sum()
    assert saved.bytes == (16 + 16 + 1) * 4  # the input, exp's output, the loss
    loss.backward()
    torch.testing.assert_close(x.grad, x.cos() * x.sin().exp() * -x.sin().exp().sin())


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


def test_what_is_saved_for_a_result_that_is_thrown_away_is_not_kept():
    x = torch.randn(16, requires_grad=True)
    with SavedTensors() as saved:
        x.exp().sin().sum()
        loss = x.exp().sum()
    assert saved.bytes == (16 + 1) * 4
    loss.backward()
    torch.testing.assert_close(x.grad, x.exp())


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh())
        self.head = nn.Linear(8, 2)
        self.cache = []

    def forward(self, x):
        x = self.body(x)
        self.cache.append(x.detach() * 2)
        return self.loss(self.head(x))

    def loss(self, y):
        return y.exp().sum()


def test_bytes_by_module():
    model, x = Parts(), torch.randn(4, 8)
    with SavedTensors(model.parameters(), model) as saved:
        loss = model(x)
    # the linear layer's input, tanh's output, exp's output and the loss, what is put away
    assert saved.by_module == {"body.0": 128, "body.1": 128, "": 128, "loss()": 36}
    assert (saved.of("body"), saved.of("head"), saved.bytes) == (256, 0, 420)
    loss.backward()
    assert model.head.weight.grad is not None
