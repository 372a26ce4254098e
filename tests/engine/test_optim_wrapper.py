import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


def test_bfloat16_on_the_cpu_steps_like_autocast():
    torch.manual_seed(0)
    model, reference = nn.Linear(4, 4), nn.Linear(4, 4)
    reference.load_state_dict(model.state_dict())
    x = torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(dict(type="BFloat16OptimWrapper", optimizer=optimizer))
    with wrapper.optim_context(model):
        y = model(x)
    assert y.dtype == torch.bfloat16
    assert model(x).dtype == torch.float32
    wrapper.update_params(y.float().square().mean())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = reference(x)
    y.float().square().mean().backward()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad)
