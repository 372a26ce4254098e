"""What a training step costs: bytes, arithmetic, time."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

from .saved_tensors import SavedTensors

_Shape = tuple[int, ...]


def _attention_flops(q: _Shape, k: _Shape, v: _Shape, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flops(dy: _Shape, q: _Shape, k: _Shape, v: _Shape, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(dy, q, k, v)


def _convolution_backward_flops(dy: _Shape, x: _Shape, w: _Shape, *args: Any, **kwargs: Any) -> int:
    transposed, wanted = args[4], args[7]
    return conv_flop_count(list(x), list(w), list(dy), transposed) * sum(wanted[:2])


# What torch does not know, the attention kernel of CPUs, and what it counts without regard to groups.
_FORMULAS = {
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


class TrainingStep:
    """Gradients, and a step of AdamW: call it to take one.

    Args:
        model: The model, its ``requires_grad`` set.
        loss: Runs the forward pass of one batch; returns a scalar.
        dtype: Forward runs under autocast to this, unless it is float32.
        fused: Whether AdamW is the fused one.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[], Tensor], dtype: torch.dtype = torch.float32, fused: bool = False
    ) -> None:
        self.model = model
        self._loss = loss
        self._dtype = dtype
        self.device = next(model.parameters()).device
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=fused or None)

    def forward(self) -> Tensor:
        """The forward pass of the batch; returns the loss."""
        if self._dtype == torch.float32:
            return self._loss()
        with torch.autocast(self.device.type, self._dtype):
            return self._loss()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.forward().backward()
        self.optimizer.step()


@dataclass(frozen=True)
class StepCost:
    """What one training step needs, whatever the machine.

    Attributes:
        trained: Parameters that train.
        saved_bytes: Kept from forward to backward, each storage once, parameters and buffers left out.
        gradient_bytes: Gradients of the trained parameters.
        optimizer_bytes: The optimizer's states of them.
        forward_flops: Of matrix products, convolutions and attention; a multiplication and an addition count as two.
        backward_flops: The same, with what is computed again.
    """

    trained: int
    saved_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    forward_flops: int
    backward_flops: int


def step_cost(step: TrainingStep) -> StepCost:
    """Take a step, then count what another forward and backward pass need.

    Args:
        step: Of a model that is not compiled.
    """
    step()
    trained = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    states = [value for state in step.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    gradient_bytes, optimizer_bytes = (sum(t.untyped_storage().nbytes() for t in ts) for ts in (gradients, states))
    step.optimizer.zero_grad()
    with SavedTensors(ignore=[*step.model.parameters(), *step.model.buffers()]) as saved:
        loss = step.forward()
    del loss
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as forward:
        loss = step.forward()
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as backward:
        loss.backward()
    step.optimizer.zero_grad()
    return StepCost(
        trained=sum(parameter.numel() for parameter in trained),
        saved_bytes=saved.bytes,
        gradient_bytes=gradient_bytes,
        optimizer_bytes=optimizer_bytes,
        forward_flops=forward.get_total_flops(),
        backward_flops=backward.get_total_flops(),
    )


def interleaved_times(
    runs: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Seconds of each call. They take turns, so that a noisy machine hurts all alike.

    Args:
        runs: What to time.
        device: Where it runs; on a GPU its own events are the clock.
        rounds: Measured calls of each.
        warm_up: Calls of each before that.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(warm_up + rounds):
        for name, run in runs.items():
            seconds = _seconds(run, device)
            if round_ >= warm_up:
                times[name].append(seconds)
    return times


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has had, in bytes.

    On a GPU it is the device's own count, of tensors; else what was resident in main memory, with code and libraries.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with open("/proc/self/status") as status:
        # not getrusage's maximum, which starts from that of the process that this one was started by
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
