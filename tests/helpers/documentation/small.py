"""What makes documented models and trainings small, in every process of a documentation's folder.

It is their ``sitecustomize``: timm's ViTs get narrow blocks and random weights, ``apla_mm.train`` a few steps, and
configs are not formatted.
"""

from typing import Any

from wrapt import when_imported

VIT = dict(depth=12, embed_dim=96, num_heads=2)


def _small_vits(timm: Any) -> None:
    create = timm.create_model

    def create_model(name: str, pretrained: bool = False, **options: Any) -> Any:
        return create(name, **{**(VIT if "vit" in name else {}), **options})

    timm.create_model = create_model


def _plain_text_of_configs(yapf_api: Any) -> None:
    """A run writes its config seven times, and formatting takes longer than all else."""
    yapf_api.FormatCode = lambda text, **how: (text, True)


def _few_steps(training: Any) -> None:
    training.train.__kwdefaults__.update(steps=2, image_size=56, batch_size=2, workers=0)


if __name__ == "sitecustomize":  # and not in the tests' own process, which reads VIT
    when_imported("timm")(_small_vits)
    when_imported("yapf.yapflib.yapf_api")(_plain_text_of_configs)
    when_imported("apla_mm.api.training")(_few_steps)
