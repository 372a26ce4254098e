import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.processes import run_python
from torch import nn

from apla_mm.measure import TrainingStep, interleaved_times, step_cost
from apla_mm.method import adapt


def test_bytes_and_arithmetic_of_a_known_layer():
    layer = nn.Linear(8, 16)
    x = torch.randn(4, 8)
    cost = step_cost(TrainingStep(layer, lambda: layer(x).tanh().sum()))
    assert cost.trained == 8 * 16 + 16
    assert cost.gradient_bytes == cost.trained * 4
    assert cost.optimizer_bytes == 2 * cost.trained * 4 + 2 * 4  # two moments, and a count for each tensor
    assert cost.saved_bytes == (4 * 8 + 4 * 16 + 1) * 4  # the input, tanh's output, the loss
    assert cost.forward_flops == 2 * 4 * 8 * 16
    assert cost.backward_flops == 2 * 4 * 8 * 16  # the input needs no gradient


def test_attention_counts_two_products_forward_and_five_backward():
    q = nn.Parameter(torch.randn(2, 3, 16, 8))
    holder = nn.Module()
    holder.q = q
    cost = step_cost(TrainingStep(holder, lambda: F.scaled_dot_product_attention(q, q, q).sum()))
    product = 2 * 2 * 3 * 16 * 16 * 8
    assert (cost.forward_flops, cost.backward_flops) == (2 * product, 5 * product)


@pytest.mark.parametrize(("groups", "trains_input"), [(1, True), (8, True), (8, False)])
def test_each_gradient_of_a_convolution_costs_as_much_as_its_forward(groups, trains_input):
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    x = torch.randn(2, 8, 5, 5, requires_grad=trains_input)
    cost = step_cost(TrainingStep(layer, lambda: layer(x).sum()))
    assert cost.forward_flops == 2 * 2 * 25 * 8 * 8 // groups * 9
    assert cost.backward_flops == cost.forward_flops * (1 + trains_input)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_plain_torch(dtype):
    layer, twin = nn.Linear(8, 8), nn.Linear(8, 8)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(4, 8)
    step = TrainingStep(layer, lambda: layer(x).square().mean(), dtype)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-5)
    for _ in range(3):
        step()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = twin(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(layer.weight, twin.weight)


def test_gradients_and_states_of_an_adapted_model_are_those_of_its_channels():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    adapt(model, r=12)
    x = torch.randn(1, 3, 32, 32)
    cost = step_cost(TrainingStep(model, lambda: model(x).sum()))
    channels = 12 * 12 * (192 + 1) * 4
    assert cost.gradient_bytes == channels
    assert cost.optimizer_bytes == pytest.approx(2 * channels, rel=0.01)


def test_calls_take_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = interleaved_times(runs, torch.device("cpu"), rounds=3, warm_up=2)
    assert calls == list("abc") * 5
    assert {name: len(seconds) for name, seconds in times.items()} == dict(a=3, b=3, c=3)
    assert all(second > 0 for seconds in times.values() for second in seconds)


def test_peak_memory_is_the_processes_own():
    large = torch.ones(400 * 2**20 // 4)  # of this process, not of the one below
    code = """if True:
        import torch
        from apla_mm.measure import peak_bytes
        before = peak_bytes(torch.device("cpu"))
        torch.ones(200 * 2**20 // 4)
        print(before, peak_bytes(torch.device("cpu")))
    """
    before, after = map(int, run_python(code).stdout.split()[-2:])
    assert after - before > 180 * 2**20
    with open("/proc/self/status") as status:
        own = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    assert before < own - 150 * 2**20 and large[0] == 1
