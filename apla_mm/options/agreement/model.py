"""Parts of a model that must fit one another: channels, maps, weights of classes, masks."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from ...data.folders import LOADERS
from ...data.labels.heads import is_in_head, is_other_type
from .architecture import (
    depth_of,
    maps_of_backbone,
    maps_of_neck,
    strides_of_backbone,
    strides_of_neck,
    width_of_vectors_of,
)
from .datasets import classes_of, datasets
from .problems import Problem, as_list, find, keyed, kind, parts

#: parts that count in pixels of the image, and take the maps in their order, the first ones
_COUNT_PIXELS = {"anchor_generator", "prior_generator", "bbox_head", "bbox_roi_extractor", "mask_roi_extractor"}
_QUERIES = {"MaskFormerHead", "Mask2FormerHead"}  # heads that take all maps
_COUNT_NOTHING = {*_QUERIES, "SideAdapterCLIPHead"}  # heads whose loss has one class more, for what is of none


def backbone_outputs_exist(cfg: Config) -> Iterator[Problem]:
    """The outputs that are asked for are ones that the backbone has."""
    backbone = find(cfg, "model.backbone", {})
    depth, asked = depth_of(backbone), as_list(backbone.get("out_indices"))
    if depth is None or not asked or not all(isinstance(i, int) for i in asked):
        return
    wrong = [i for i in asked if not -depth <= i < depth]
    if wrong:
        what = f"{', '.join(map(str, wrong))} is none of the {depth} outputs of {kind(backbone)}, 0 to {depth - 1}"
        last = [depth * (i + 1) // len(asked) - 1 for i in range(len(asked))]
        yield Problem("model.backbone.out_indices", what, {"model.backbone.out_indices": last})


def channels_fit(cfg: Config) -> Iterator[Problem]:
    """Each neck and head takes the channels of the maps that it is given."""
    model = find(cfg, "model", {})
    maps = maps_of_backbone(find(model, "backbone", {})) if isinstance(find(model, "backbone"), Mapping) else None
    giver = "model.backbone"
    neck = find(model, "neck")
    if neck is not None:
        if maps is not None and isinstance(neck, Mapping):
            yield from _neck_fits(neck, maps)
        maps, giver = (maps_of_neck(neck) if isinstance(neck, Mapping) else None), "model.neck"
    if maps is None:
        return
    for name in ("decode_head", "auxiliary_head"):
        for key, head in keyed(cfg, f"model.{name}"):
            if isinstance(head, Mapping):
                yield from _segmentation_head_fits(key, head, maps, giver)
    if neck is not None:
        yield from _detection_heads_fit(cfg, maps)
        yield from _strides_fit(cfg)


def _neck_fits(neck: Mapping[str, Any], maps: list[int]) -> Iterator[Problem]:
    given = neck.get("in_channels")
    expected: Any = maps[-1] if kind(neck) == "SimpleFeaturePyramid" else maps
    known = kind(neck) in ("FPN", "ChannelMapper", "SimpleFeaturePyramid", "MultiLevelNeck")
    if known and given is not None and (as_list(given) != as_list(expected)):
        what = f"{_told(given)}, and model.backbone gives maps of {_told(maps)} channels"
        yield Problem("model.neck.in_channels", what, {"model.neck.in_channels": expected})


def _segmentation_head_fits(key: str, head: Mapping[str, Any], maps: list[int], giver: str) -> Iterator[Problem]:
    given = head.get("in_channels")
    several = isinstance(given, list | tuple)
    index = head.get("in_index", list(range(len(maps))) if kind(head) in _QUERIES else -1)
    indices = as_list(index)
    if given is None or not all(isinstance(i, int) for i in indices):
        return
    wrong = [i for i in indices if not -len(maps) <= i < len(maps)]
    told = f"{giver} gives {len(maps)} map{'s' * (len(maps) > 1)} of {_told(maps)} channels"
    if wrong:
        what = f"{_told(index)}, and {told}: there is no map {', '.join(map(str, wrong))}"
        fits = [i % len(maps) for i in indices] if len(indices) > len(maps) else list(range(len(maps)))[-len(indices) :]
        hint = "or more outputs in model.backbone.out_indices" if giver == "model.backbone" else ""
        yield Problem(f"{key}.in_index", what, {f"{key}.in_index": fits if several else fits[0]}, hint)
        return
    expected = [maps[i] for i in indices]
    if several and len(given) != len(indices):
        what = f"{_told(given)}, {len(given)} numbers, and {key}.in_index={_told(index)} has {len(indices)}"
        yield Problem(f"{key}.in_channels", what, {f"{key}.in_channels": expected})
    elif as_list(given) != expected:
        what = f"{_told(given)}, and {told}, of which it takes {_told(index)}"
        yield Problem(f"{key}.in_channels", what, {f"{key}.in_channels": expected if several else expected[0]})


def _detection_heads_fit(cfg: Config, maps: list[int]) -> Iterator[Problem]:
    width = maps[0]
    for key in ("rpn_head", "bbox_head", "mask_head"):
        given = find(cfg, f"model.{key}.in_channels")
        if isinstance(given, int) and given != width:
            what = f"{given}, and model.neck gives maps of {width} channels"
            yield Problem(f"model.{key}.in_channels", what, {f"model.{key}.in_channels": width})
        strides = find(cfg, f"model.{key}.anchor_generator.strides")
        if isinstance(strides, list | tuple) and len(strides) != len(maps):
            what = f"{_told(strides)}, for {len(strides)} maps, and model.neck gives {len(maps)}"
            cure = {"model.neck.num_outs": len(strides)}
            yield Problem(f"model.{key}.anchor_generator.strides", what, cure)
    for key, extractor in parts(find(cfg, "model.roi_head", {}), "model.roi_head"):
        if kind(extractor) not in ("SingleRoIExtractor", "GenericRoIExtractor"):
            continue
        if extractor.get("out_channels") not in (None, width):
            what = f"{extractor['out_channels']}, and model.neck gives maps of {width} channels"
            yield Problem(f"{key}.out_channels", what, {f"{key}.out_channels": width})
        strides = as_list(extractor.get("featmap_strides"))
        if len(strides) > len(maps):
            what = f"{_told(strides)}, for {len(strides)} maps, and model.neck gives {len(maps)}"
            yield Problem(f"{key}.featmap_strides", what, {"model.neck.num_outs": len(strides) + 1})


def _strides_fit(cfg: Config) -> Iterator[Problem]:
    """Heads that count in pixels of the image take the strides of the maps that they are given."""
    given = strides_of_backbone(find(cfg, "model.backbone", {}))
    expected = None if given is None else strides_of_neck(find(cfg, "model.neck", {}), given)
    if expected is None:
        return
    for key, part in parts(find(cfg, "model", {}), "model"):
        for name in ("strides", "featmap_strides"):
            strides = as_list(part.get(name))
            taker = any(step in _COUNT_PIXELS for step in key.split(".")[-2:])
            if not taker or not strides or not all(map(_is_number, strides)) or len(strides) > len(expected):
                continue
            right = [int(one) if one == int(one) else one for one in expected[: len(strides)]]
            # anchors may be counted out of the image's size, as 550 / 69: the next stride is twice as large
            if any(not 2 / 3 < one / other < 3 / 2 for one, other in zip(strides, right, strict=True)):
                what = f"{_told(strides)}, and model.neck gives maps of strides {_told(right)}"
                yield Problem(f"{key}.{name}", what, {f"{key}.{name}": right})


def regions_fit(cfg: Config) -> Iterator[Problem]:
    """The heads of a detector's second stage take the regions that are cut out for them."""
    roi_head = find(cfg, "model.roi_head", {})
    if roi_head.get("shared_head"):  # lies between both
        return
    for head_name in ("bbox_head", "mask_head"):
        name = head_name.replace("_head", "_roi_extractor")
        extractors = keyed(cfg, f"model.roi_head.{name if roi_head.get(name) else 'bbox_roi_extractor'}")
        heads = keyed(cfg, f"model.roi_head.{head_name}")
        for i, (key, head) in enumerate(heads):
            where, extractor = extractors[min(i, len(extractors) - 1)] if extractors else ("", {})
            if kind(extractor) != "SingleRoIExtractor" or not isinstance(head, Mapping):
                continue
            width, channels = extractor.get("out_channels"), head.get("in_channels")
            if isinstance(channels, int) and isinstance(width, int) and channels != width:
                what = f"{channels}, and {where}.out_channels is {width}"
                yield Problem(f"{key}.in_channels", what, {f"{key}.in_channels": width})
            size, taken = find(extractor, "roi_layer.output_size"), head.get("roi_feat_size")
            if isinstance(taken, int) and isinstance(size, int) and taken != size:
                what = f"{taken}, and {where}.roi_layer.output_size is {size}"
                yield Problem(f"{key}.roi_feat_size", what, {f"{key}.roi_feat_size": size})


def classifier_fits(cfg: Config) -> Iterator[Problem]:
    """A linear classifier takes the vectors that an APLAViT gives, or the maps that a neck has pooled."""
    backbone, head, neck = (find(cfg, f"model.{name}", {}) for name in ("backbone", "head", "neck"))
    given = head.get("in_channels")
    if kind(head) != "LinearClsHead" or kind(backbone) != "APLAViT" or not isinstance(given, int):
        return
    if backbone.get("output", "maps") == "maps" and not neck:
        what = "'maps', and model.head takes one vector for each image"
        yield Problem("model.backbone.output", what, {"model.backbone.output": "cls_token"}, "or 'mean', or a neck")
    width = width_of_vectors_of(backbone)
    if width is not None and not neck and given != width:
        what = f"{given}, and model.backbone gives vectors of {width} values"
        yield Problem("model.head.in_channels", what, {"model.head.in_channels": width})


def heads_count_the_classes(cfg: Config) -> Iterator[Problem]:
    """All heads count the classes that the data set has."""
    heads = list(_counting_heads(find(cfg, "model", {})))
    names = next((names for loader in LOADERS for _, names in classes_of(cfg, loader)), None)
    text = any(one.get("return_classes") for loader in LOADERS for _, one in datasets(cfg, loader))
    if not heads or text:
        return
    first, head = heads[0]
    count = head["num_classes"] if names is None else len(names)
    for key, head in heads:
        if head["num_classes"] != count:
            told = f"{first}.num_classes is {count}" if names is None else f"the data set has {count} classes"
            what = f"{head['num_classes']}, and {told}"
            yield Problem(f"{key}.num_classes", what, {f"{key}.num_classes": count}, "or the option classes")


def _counting_heads(node: Any, path: str = "model") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts of heads that count the data set's classes."""
    for key, part in parts(node, path):
        loss = any(step.startswith("loss") for step in key.split("."))
        other = loss or is_other_type(str(part.get("type"))) or part.get("class_agnostic")
        if isinstance(part.get("num_classes"), int) and kind(part) and is_in_head(key) and not other:
            yield key, part


def outputs_fit_classes(cfg: Config) -> Iterator[Problem]:
    """A head of mmseg has an output for each class, or one that says 0 or 1."""
    heads = [pair for name in ("decode_head", "auxiliary_head") for pair in keyed(cfg, f"model.{name}")]
    for key, head in heads:
        count, outputs = find(head, "num_classes"), find(head, "out_channels")
        if not isinstance(count, int) or not isinstance(outputs, int) or kind(head) in _COUNT_NOTHING:
            continue
        if outputs != count and not (outputs == 1 and count == 2):
            what = f"{outputs}, and {key}.num_classes is {count}: expected {count}"
            yield Problem(f"{key}.out_channels", what, {f"{key}.out_channels": count})
        if outputs != 1 or count > 2:
            continue
        for where, loss in parts(head.get("loss_decode"), f"{key}.loss_decode"):
            if kind(loss) == "CrossEntropyLoss" and not loss.get("use_sigmoid"):
                what = f"without it the loss is a softmax, and of one output, {key}.out_channels=1, always 0"
                yield Problem(f"{where}.use_sigmoid", what, {f"{where}.use_sigmoid": True}, f"or {key}.out_channels=2")


def weights_of_classes(cfg: Config) -> Iterator[Problem]:
    """A loss's list of weights has one for each class that its head counts, and perhaps one for the background."""
    for key, head in parts(find(cfg, "model", {}), "model"):
        things = head.get("num_things_classes")
        count = head.get("num_classes")
        if isinstance(things, int):
            count = things + (head.get("num_stuff_classes") or 0)
        if not isinstance(count, int) or (
            head.get("out_channels", count) != count and kind(head) not in _COUNT_NOTHING
        ):
            continue
        for where, loss in parts({k: v for k, v in head.items() if "loss" in str(k)}, key):
            weights = loss.get("class_weight")
            exact = ".loss_decode" in where and kind(head) not in _COUNT_NOTHING
            fits = (count,) if exact else (count, count + 1)
            if not isinstance(weights, list | tuple) or len(weights) in fits or not all(_is_number(w) for w in weights):
                continue
            expected = f"{count}" if exact else f"{count}, or {count + 1} with the background"
            what = f"{len(weights)} weights, and {key}.num_classes is {count}: expected {expected}"
            hint = "which weighs all alike, or a list of that length"
            yield Problem(f"{where}.class_weight", what, {f"{where}.class_weight": None}, hint)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def predicts_masks(model: Any) -> bool:
    """Whether a detector's config has a part that predicts masks."""
    told = ("Mask", "Ins", "SOLO", "YOLACT", "CondInst", "BoxInst", "Panoptic", "SAM", "Segm")
    return any(
        any("mask" in str(key) and key.endswith("head") and value for key, value in part.items())
        or any(word in kind(part) for word in told if not where.endswith(".backbone") and where != "model")
        or any(key in part for key in ("panoptic_head", "mask_iou_head", "semantic_head") if part.get(key))
        for where, part in parts({k: v for k, v in model.items() if k not in _NO_HEADS}, "model")
    )


_NO_HEADS = {"data_preprocessor", "train_cfg", "test_cfg", "backbone", "neck"}


def masks_are_read(cfg: Config) -> Iterator[Problem]:
    """A head of masks learns from masks, which the pipeline has to read."""
    if not find(cfg, "model.roi_head.mask_head"):
        return
    steps = [
        (key, step)
        for key, step in parts(find(cfg, "train_dataloader.dataset", {}), "train_dataloader.dataset")
        if kind(step) == "LoadAnnotations"
    ]
    if steps and not any(step.get("with_mask") for _, step in steps):
        key = steps[0][0]
        what = "no masks are read, and model.roi_head.mask_head learns from them"
        yield Problem(f"{key}.with_mask", what, {f"{key}.with_mask": True}, "for boxes alone: with_mask=False")


def classes_are_the_same(cfg: Config) -> Iterator[Problem]:
    """Where training and its evaluation name the classes, they name the same ones in the same order."""
    first: tuple[str, list[Any]] | None = None
    for loader in LOADERS:
        for where, names in classes_of(cfg, loader):
            key = f"{where}.metainfo.classes"
            if first is None:
                first = key, names
            elif names != first[1]:
                error = len(names) != len(first[1]) or set(names) == set(first[1])
                what = f"{_told(names)}, and {first[0]} is {_told(first[1])}"
                yield Problem(key, what, {key: first[1]}, "or the option classes, which sets all", error=error)


def _told(value: Any) -> str:
    items = as_list(value)
    text = ", ".join(map(str, items[:8])) + (", ..." if len(items) > 8 else "")
    return f"({text})" if isinstance(value, list | tuple) else text


RULES = [
    backbone_outputs_exist,
    channels_fit,
    regions_fit,
    classifier_fits,
    heads_count_the_classes,
    outputs_fit_classes,
]
TRAINING_RULES = [weights_of_classes, masks_are_read, classes_are_the_same]
