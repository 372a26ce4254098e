"""The linear layer of which ``r`` output channels train.

The weight W (out, in) stays whole and in its place, frozen; the chosen rows C are parameters of their own beside it::

       trained.weight (r, in)         weight W (out, in)
                                    +---------------------+
                                    |                     |   forward     y = x W^T + b           one product
           row 3    <--- sync --->  |####### row 3 #######|
                                    |                     |   backward    dx = dy W               through all rows
                                    |                     |               dW[C] = dy[:, C]^T x    the chosen rows
           row 17   <--- sync --->  |####### row 17 ######|               db[C] = sum dy[:, C]    alone, (r, in)
             ^                      |                     |
             |                      +---------------------+
         optimizer: r rows of gradients and moments, none for W
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .channels.selection import Selection
from .class_change import Changed, change


def _is_exporting() -> bool:
    exporting = getattr(torch.compiler, "is_exporting", None)  # since torch 2.7
    return bool(exporting()) if exporting else torch.compiler.is_compiling()


class _PartialLinearFunction(torch.autograd.Function):
    """``y = x W^T + b`` whose backward computes the gradient of the rows ``channels`` of W and b alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        trained_weight: Tensor,
        trained_bias: Tensor | None,
        channels: Tensor,
        leads: bool,
    ) -> Tensor:
        ctx.leads = leads
        # `trained_weight` is saved for its version alone: an optimizer step between forward and backward is an error,
        # as it is for nn.Linear.
        ctx.save_for_backward(x, weight, trained_weight, channels)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, trained_weight, channels = ctx.saved_tensors
        needs_x, _, _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            if ctx.leads:  # gathered again since forward, without what was written to it then
                weight.data.index_copy_(0, channels, trained_weight.data.to(weight.dtype))
            # the dtypes differ where autocast ran the forward
            grad_x = grad @ weight.to(grad.dtype)
        if needs_weight or needs_bias:
            grad_rows = grad.reshape(-1, grad.shape[-1]).index_select(1, channels)
            if needs_weight:
                grad_weight = (grad_rows.T @ x.reshape(-1, x.shape[-1])).to(trained_weight.dtype)
            if needs_bias:
                grad_bias = grad_rows.sum(0).to(trained_weight.dtype)
        return grad_x, None, None, grad_weight, grad_bias, None, None


class TrainedChannels(nn.Module):
    """What the optimizer sees of a :class:`PartialLinear`: the chosen rows as parameters of their own.

    They are called ``weight`` and ``bias``, so that optimizer rules that go by name (no decay on biases, say) hold.
    A state dict knows nothing of this module.

    The rows exist twice, here and in the full tensors, and either can be written by others: an optimizer or an EMA of
    parameters writes here; a loader, ``init_weights`` or an EMA of state dicts writes there, often through ``.data``
    where no version counter sees it. One rule brings both together: the rows here count if they moved since the last
    time, else those in the full tensor. ``last_weight`` and ``last_bias`` are buffers, so that whoever swaps all
    parameters and buffers of two models swaps this state as a whole.

    Where the full tensors are gathered from shards, and what is written to them is lost, the rows here always count:
    see :attr:`leads`.

    Attributes:
        weight: (r, in), trains.
        bias: (r,), trains; None if the layer has none.
        channels: (r,) int64, the output channels, ascending.
        chosen: The same as numbers, which no device and no swap of buffers can lose.
        leads: Whether the rows here count whatever the full tensors hold, but for what ``load_state_dict`` loads.
        awaits: By what the channels are still to be chosen, once weights are loaded; until then they are others.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    channels: Tensor
    last_weight: Tensor
    last_bias: Tensor | None
    leads = False
    awaits: Selection | None = None

    def __init__(self, linear: nn.Linear, channels: Sequence[int]) -> None:
        super().__init__()
        self.chosen = tuple(channels)
        index = torch.tensor(self.chosen, dtype=torch.int64, device=linear.weight.device)
        self.register_buffer("channels", index, persistent=False)
        for name in ("weight", "bias"):
            full = getattr(linear, name)
            rows = None if full is None else full.detach().index_select(0, index)
            self.register_parameter(name, None if rows is None else nn.Parameter(rows))
            self.register_buffer(f"last_{name}", None if rows is None else rows.clone(), persistent=False)

    def sync(self, weight: Tensor, bias: Tensor | None) -> None:
        """Make the chosen rows of the full ``weight`` (out, in) and ``bias`` (out,) equal to the parameters here."""
        self._sync(weight, self.weight, self.last_weight)
        if bias is not None and self.bias is not None and self.last_bias is not None:
            self._sync(bias, self.bias, self.last_bias)

    def synced(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Copies of ``weight`` and ``bias`` as :meth:`sync` would leave them; nothing is written."""
        weight = self._synced(weight, self.weight, self.last_weight)
        if bias is not None and self.bias is not None and self.last_bias is not None:
            bias = self._synced(bias, self.bias, self.last_bias)
        return weight, bias

    @torch.no_grad()
    def adopt(self, weight: Tensor, bias: Tensor | None) -> None:
        """Make the rows here equal to those of ``weight`` and ``bias``."""
        for full, name in ((weight, "weight"), (bias, "bias")):
            if full is not None:
                rows = full.data.index_select(0, self.channels)
                getattr(self, name).data.copy_(rows)
                getattr(self, f"last_{name}").copy_(rows)

    @torch.no_grad()
    def _sync(self, full: Tensor, rows: Tensor, last: Tensor) -> None:
        # `.data`: a layer used twice in a graph writes the same values twice, which autograd need not know
        full, rows = full.data, rows.data
        if self.leads:
            full.index_copy_(0, self.channels, rows.to(full.dtype))
            return
        current = self._current(full, rows, last)
        full.index_copy_(0, self.channels, current)
        rows.copy_(current)
        last.copy_(current)

    def _synced(self, full: Tensor, rows: Tensor, last: Tensor) -> Tensor:
        return full.index_copy(0, self.channels, self._current(full, rows.detach(), last))

    def _current(self, full: Tensor, rows: Tensor, last: Tensor) -> Tensor:
        if self.leads:
            return rows
        moved = (rows != last) & ~(rows.isnan() & last.isnan())
        return torch.where(moved.any(), rows, full.index_select(0, self.channels))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TrainedChannels":
        was_empty = self.channels.is_meta
        super()._apply(fn, recurse)
        if was_empty and not self.channels.is_meta:  # what to_empty() gives is memory as it was
            self.channels = torch.tensor(self.chosen, device=self.channels.device)
            for name in ("weight", "bias"):
                if (rows := getattr(self, name)) is not None:  # not moved: what is written to the full tensors counts
                    getattr(self, f"last_{name}").copy_(rows.detach())
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        pass


class PartialLinear(Changed, nn.Linear):
    """A linear layer of which the output channels ``channels`` train, and nothing else.

    With C the chosen channels, the layer computes ``y = x W^T + b`` in one product and its backward
    ``dx = dy W``, ``dW[C] = dy[:, C]^T x``, ``db[C] = sum dy[:, C]``: the full gradient, restricted (APLA,
    arXiv 2503.11335, section 3). Nothing of size (out, in) gets a gradient or an optimizer state.

    ``weight`` (out, in) and ``bias`` (out,) stay where they are in a plain linear layer, frozen and always current,
    so state dicts, initialisers and readers of ``.weight`` see the plain layer. The rows that train are the
    parameters of :attr:`trained`.

    A plain layer becomes one by :meth:`of`, in place.
    """

    trained: TrainedChannels

    @classmethod
    def of(cls, linear: nn.Linear, channels: Sequence[int]) -> "PartialLinear":
        """Let some output channels of a plain layer train, and nothing else of it, in place.

        Args:
            linear: The layer.
            channels: Distinct output channels, ascending.

        Returns:
            The same layer.
        """
        trained = TrainedChannels(linear, channels).train(linear.training)
        for tensor in linear._parameters.values():
            if tensor is not None:
                tensor.requires_grad_(False)
        layer = change(linear, cls)
        layer.trained = trained
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: (..., in).

        Returns:
            (..., out).
        """
        trained = self.trained
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if not trained.leads and not isinstance(weight, nn.Parameter) and weight._is_view():
            raise RuntimeError(
                "the weight of an adapted projection is a view of another tensor, as in FullyShardedDataParallel: "
                "before that, call apla_mm.method.memory.sharding.keep_whole, or train with APLAFSDPStrategy"
            )
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            raise RuntimeError(
                f"the frozen {'weight' if weight.requires_grad else 'bias'} of an adapted projection was set to "
                "require a gradient, and would get none, since its rows train in `trained`; adapt with r='full' to "
                "train all of it, or merge the model first"
            )
        if trained.awaits is not None and self.training and torch.is_grad_enabled():
            raise RuntimeError(
                f"the channels of an adapted projection are to be chosen by selection='{trained.awaits.type}' before "
                "training, and have not been: add custom_hooks=[dict(type='APLAHook')], which does so in "
                "OpenMMLab's runs; elsewhere load weights, then adapt with channels=apla_mm.select_channels(...)"
            )
        if _is_exporting():  # into a graph, which may not write to weights
            weight, bias = trained.synced(weight, bias)
        else:
            trained.sync(weight, bias)
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype == torch.float32:
            x = x.to(torch.get_autocast_dtype(device))  # here, so that the copy kept for backward is this one
        return _PartialLinearFunction.apply(
            x, weight, bias, trained.weight, trained.bias, trained.channels, trained.leads
        )

    def sync(self) -> None:
        """Bring :attr:`weight` and :attr:`bias` up to date with what trained; see :class:`TrainedChannels`.

        Raises:
            RuntimeError: The weight is a shard.
        """
        if self.weight.ndim != 2:
            raise RuntimeError(
                "this process holds a shard of an adapted projection's weight: gather it by "
                "FullyShardedDataParallel.summon_full_params, or, for state dicts, StateDictType.FULL_STATE_DICT"
            )
        self.trained.sync(self.weight, self.bias)

    def choose(self, channels: Sequence[int]) -> None:
        """Have other channels train, as many as before, in place: optimizers and wrappers hold the same parameters.

        Args:
            channels: Distinct output channels, ascending.
        """
        self.sync()
        trained = self.trained
        trained.chosen = tuple(channels)
        trained.channels.copy_(torch.tensor(trained.chosen))
        trained.adopt(self.weight, self.bias)
        trained.awaits = None

    def _before_change_back(self) -> None:
        self.sync()
        del self.trained

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(value, "full_tensor"):
            raise RuntimeError(
                f"the {name} of an adapted projection cannot be a {type(value).__name__}, as in fully_shard (FSDP2): "
                "what trains could not be merged into it; use FullyShardedDataParallel with "
                "apla_mm.method.memory.sharding.keep_whole"
            )
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """The plain layer's, and how many channels train."""
        return f"{super().extra_repr()}, r={len(self.trained.chosen)}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.sync()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.sync()
        super()._load_from_state_dict(*args, **kwargs)
        for tensor in self._parameters.values():
            if tensor is not None:
                tensor.requires_grad_(False)
        if self.trained.leads:
            self.trained.adopt(self.weight, self.bias)
        self.sync()
