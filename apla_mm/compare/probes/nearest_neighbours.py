"""What a backbone's features are worth as they are: classes told by the nearest training images."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_QUERIES = 1024  # whose similarities to all training images are in memory at once


@torch.no_grad()
def labelled_features(model: Any, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """The vectors of images, as they reach a classifier's head, and their classes.

    Args:
        model: An ``ImageClassifier`` of mmpretrain, not wrapped.
        batches: Of a data loader.

    Returns:
        float32 (N, C) and int64 (N,), on the model's device.

    Raises:
        ValueError: The model gives no vector for an image, or an image has not one class.
    """
    model.eval()
    features, labels = [], []
    for batch in batches:
        batch = model.data_preprocessor(batch, False)
        given = model.extract_feat(batch["inputs"], stage="neck")
        vectors = given[-1] if isinstance(given, list | tuple) else given
        if not isinstance(vectors, Tensor) or vectors.dim() != 2:
            raise ValueError(
                f"the {type(model.backbone).__name__} gives no vector for an image: set model.backbone.output of an "
                "APLAViT to 'cls_token', or model.neck=dict(type='GlobalAveragePooling')"
            )
        for sample in batch["data_samples"]:
            if "gt_label" not in sample or sample.gt_label.numel() != 1:
                raise ValueError(f"{sample.get('img_path')} has not one class: k-NN needs images with one label each")
            labels.append(sample.gt_label.reshape(()))
        features.append(vectors.float())
    return torch.cat(features), torch.stack(labels).to(features[0].device, torch.int64)


def nearest_classes(
    features: Tensor, labels: Tensor, queries: Tensor, ks: Sequence[int], temperature: float = 0.07
) -> Tensor:
    """Classes by weighted nearest neighbours, as DINO's evaluation has them (arXiv 2104.14294).

    Of the k training images whose features have the largest cosines s with an image's, each votes for its class with
    the weight exp(s / temperature).

    Args:
        features: Of training images, (N, C).
        labels: Their classes, int64 (N,).
        queries: Features of the images to tell, (M, C).
        ks: How many neighbours vote; one result for each.
        temperature: The lower, the more the nearest decide.

    Returns:
        Classes, int64 (len(ks), M).

    Raises:
        ValueError: There are fewer training images than a k, or the temperature is not above 0.
    """
    if not ks or min(ks) < 1 or max(ks) > len(features):
        raise ValueError(f"k={', '.join(map(str, ks))} must be from 1 to the {len(features)} training images")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0")
    base = F.normalize(features, dim=1)
    classes = int(labels.max()) + 1
    told = []
    for part in F.normalize(queries, dim=1).split(_QUERIES):
        similarity, nearest = (part @ base.T).topk(max(ks), dim=1)
        # less the largest: the same votes, and no overflow however low the temperature is
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = nn.functional.one_hot(labels[nearest], classes) * weights[..., None]
        told.append(torch.stack([votes[:, :k].sum(1).argmax(1) for k in ks]))
    return torch.cat(told, 1)
