"""What the processes of a job send one another in a training step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel


class CountedBuckets:
    """Counts what DDP gives to the all-reduce of gradients, and changes nothing of it.

    Args:
        wrapped: A model in DDP, before its first backward pass and without another communication hook.

    Attributes:
        count: Buckets since the last :meth:`reset`; each is one all-reduce.
        bytes: What they held, the same on every process.
        by_parameter: The same, by the name of the parameter in the model.
    """

    def __init__(self, wrapped: DistributedDataParallel) -> None:
        self._names = {parameter: name for name, parameter in wrapped.module.named_parameters()}
        self._group = wrapped.process_group
        self.reset()
        wrapped.register_comm_hook(self, _count_and_reduce)

    def reset(self) -> None:
        """Start again from nothing."""
        self.count = self.bytes = 0
        self.by_parameter: dict[str, int] = {}

    def add(self, bucket: distributed.GradBucket) -> Future[Tensor]:
        """Count a bucket and all-reduce it."""
        self.count += 1
        self.bytes += bucket.buffer().nbytes
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            name = self._names[parameter]
            self.by_parameter[name] = self.by_parameter.get(name, 0) + gradient.nbytes
        return allreduce_hook(self._group, bucket)


def _count_and_reduce(buckets: CountedBuckets, bucket: distributed.GradBucket) -> Future[Tensor]:
    return buckets.add(bucket)


@dataclass(frozen=True)
class Traffic:
    """What each process gives to the all-reduce of gradients in one training step.

    Attributes:
        trained: Parameters that train.
        bytes: Of all buckets together.
        buckets: How many there are.
        by_parameter: Bytes by the parameter's name.
    """

    trained: int
    bytes: int
    buckets: int
    by_parameter: dict[str, int]

    def of(self, part: str) -> int:
        """Bytes of a part of the model, such as ``'backbone'``."""
        return sum(count for name, count in self.by_parameter.items() if name.startswith(f"{part}."))


def gradient_traffic(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Traffic:
    """Run backward passes under DDP and count what is all-reduced.

    The bytes depend on neither the batch nor the number of processes, so one process is enough; without a process
    group it is a group by itself for as long as this takes. What else a step sends, such as SyncBN's statistics, is
    not counted.

    Args:
        model: The model, its ``requires_grad`` set, on the CPU unless there is a process group of GPUs. It is left
            with gradients.
        loss: Runs the forward pass of one batch through the model that it is given; returns a scalar.

    Raises:
        RuntimeError: A parameter that trains gets no gradient, so that DDP would need ``find_unused_parameters``.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with _process_group():
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        buckets = CountedBuckets(wrapped)
        for _ in range(2):  # after the first step DDP sorts its buckets anew
            buckets.reset()
            model.zero_grad()
            loss(wrapped).backward()
            unused = [name for name, parameter in trained.items() if parameter.grad is None]
            if unused:
                raise RuntimeError(
                    f"{len(unused)} parameters that train get no gradient, such as {', '.join(unused[:4])}: freeze "
                    "them; DDP would need find_unused_parameters=True"
                )
    return Traffic(
        trained=sum(parameter.numel() for parameter in trained.values()),
        bytes=buckets.bytes,
        buckets=buckets.count,
        by_parameter=buckets.by_parameter,
    )


@contextmanager
def _process_group() -> Iterator[None]:
    """A process group: the one that there is, or one of this process alone."""
    if distributed.is_initialized():
        yield
        return
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()
