"""``nn.TransformerEncoderLayer`` that calls its attention, also where torch has a quicker way past it."""

from torch import nn

from ..class_change import Changed, change
from .multihead import ProjectedMultiheadAttention


class CallingEncoderLayer(Changed, nn.TransformerEncoderLayer):
    """Calls ``self_attn`` in evaluation too.

    The plain layer hands ``self_attn.out_proj.weight`` to one kernel for the whole layer where it is in evaluation mode
    and that weight needs no gradient: a layer that replaces ``out_proj`` would neither be seen nor trained.
    """

    #: of an activation that the kernel does not know
    activation_relu_or_gelu = property(lambda self: 0)


class CallingEncoder(Changed, nn.TransformerEncoder):
    """Gives its layers padded tensors, since nested ones are for the kernel alone."""

    use_nested_tensor = property(lambda self: False)


def call_attentions(model: nn.Module) -> None:
    """Have the encoder layers of a model call those attentions that are changed, in place."""
    for layer in list(model.modules()):
        plain = isinstance(layer, nn.TransformerEncoderLayer) and not isinstance(layer, CallingEncoderLayer)
        if plain and isinstance(layer.self_attn, ProjectedMultiheadAttention):
            change(layer, CallingEncoderLayer)
    for encoder in list(model.modules()):
        plain = isinstance(encoder, nn.TransformerEncoder) and not isinstance(encoder, CallingEncoder)
        if plain and any(isinstance(layer, CallingEncoderLayer) for layer in encoder.modules()):
            change(encoder, CallingEncoder)
