"""Parts of a model: norms, biases, position embeddings, and what it freezes itself."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from ..method.names import projection_of
from ..methods.kinds import bias_names, norm_names, position_names
from ..text import quoted

#: what settings are called by which a model freezes parts of itself
_FREEZING = ("frozen", "freeze")


def trainable_names(part: nn.Module, left_frozen: Container[str], norm: bool, bias: bool, pos_embed: bool) -> list[str]:
    """Names of the parameters of these kinds.

    Args:
        part: A backbone, say.
        left_frozen: Names of those to leave out, which ``part`` has frozen itself.
        norm: Weights and biases of norms.
        bias: All biases.
        pos_embed: Position embeddings, absolute and relative.

    Returns:
        Their names inside ``part``.

    Raises:
        ValueError: A kind is asked for and ``part`` has none of it.
    """
    kinds = {
        "train_norm": norm_names(part) if norm else [],
        "train_bias": bias_names(part) if bias else [],
        "train_pos_embed": position_names(part) if pos_embed else [],
    }
    for (kind, names), asked in zip(kinds.items(), (norm, bias, pos_embed), strict=True):
        if asked and not names:
            raise ValueError(f"{kind}=True, and {type(part).__name__} has none")
        if asked and all(name in left_frozen for name in names):
            cure = _cure(part, names[0].rpartition(".")[0]) or f"leave {kind} out"
            raise ValueError(
                f"{kind}=True, and {type(part).__name__} has frozen all of its own itself, {quoted(names, 3)}: {cure}"
            )
    return list(dict.fromkeys(name for names in kinds.values() for name in names if name not in left_frozen))


def requires_grad_of(model: nn.Module) -> dict[str, bool]:
    """Names of a model's parameters to whether they train."""
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def frozen_by_itself(model: nn.Module) -> set[str]:
    """Names of the parameters that a model has frozen, or freezes when it is set to train. The model stays as it is."""
    before = requires_grad_of(model)
    with modes_kept(model):
        model.train()
    after = requires_grad_of(model)
    _restore(model, before)
    return {name for name, trains in after.items() if not trains}


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Within it ``train()`` and ``eval()`` may be called; behind it each module is in the mode that it was in."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def check_train_keeps(model: nn.Module, names: Iterable[str] | None = None) -> None:
    """Check that a model's own ``train()`` and ``eval()`` leave it as it is which parameters train.

    Some models freeze parameters each time they are set to train, such as those with ``frozen_stages``: what
    :func:`apla_mm.adapt` chose to train would not. The methods are called as a loop does that validates.

    Args:
        model: A model that is about to train, not its DDP wrapper.
        names: The parameters that must stay as they are, all by default. Others are settled: what ``train()`` makes of
            them at first must stay then.

    Raises:
        ValueError: They do not; names parameters, the module whose ``train()`` it is, and the cure. As to which
            parameters train the model is as it was.
    """
    as_it_was = requires_grad_of(model)
    with modes_kept(model):
        model.train()
        expected = as_it_was if names is None else {**requires_grad_of(model), **{n: as_it_was[n] for n in names}}
        model.eval()
        model.train()
        if not (changed := _changed(model, expected)):
            return
        _restore(model, expected)
        name, culprit, found = _whose_train(model, expected) or ("", model, changed)
    _restore(model, as_it_was)
    where = f"{type(culprit).__name__}.train() of '{name}'" if name else f"{type(culprit).__name__}.train()"
    cure = _cure(model, name) or (
        f"change {type(culprit).__name__}.train(), or its settings, so that requires_grad stays as it is"
    )
    raise ValueError(f"{where}, which every training loop calls, {_said(found)}: {cure}")


def check_as_before(model: nn.Module, expected: Mapping[str, bool], since: str) -> None:
    """Check that the same parameters train as before.

    Args:
        model: The model.
        expected: What :func:`requires_grad_of` gave before.
        since: What may have changed it.

    Raises:
        ValueError: Others do; names them and the cure.
    """
    if changed := _changed(model, expected):
        name, _, _ = next(iter(changed)).rpartition(".")
        cure = _cure(model, name) or "what shall be frozen must be so when the model is built"
        raise ValueError(f"since {since}: the model or a hook {_said(changed)}: {cure}")


def check_not_frozen_by_itself(part: nn.Module, before: Mapping[str, bool], projections: Sequence[str]) -> None:
    """Check that an adapted model trains nothing that it had frozen itself, and goes on to train what is its own.

    Args:
        part: The model, adapted.
        before: What :func:`requires_grad_of` gave before it was.
        projections: Names of all its projections, in its order.

    Raises:
        ValueError: It had frozen what trains now, such as the blocks of ``frozen_stages``; or it had frozen all
            projections, and what it trained in their place, as a tuning method of its own does, is frozen now.
    """
    now = requires_grad_of(part)
    plain = {name: name.replace(".trained.", ".") for name in now}
    thawed = [plain[name] for name, trains in now.items() if trains and not before.get(name, before.get(plain[name]))]
    left = [
        i
        for i, name in enumerate(projections)
        if any(before.get(f"{name}.{kind}") for kind in ("weight", "trained.weight"))
    ]
    lost = [name for name, trained in before.items() if trained and not now[name]] if not left else []
    if not thawed and not lost:
        return
    kind = type(part).__name__
    own = f"{kind} has frozen all of its projections itself, and trains {quoted(lost, 3)}" if lost else ""
    if thawed:
        would = f"{len(thawed)} parameters that would train: {quoted(thawed, 3)}"
        text = f"{own}; frozen are {would}" if lost else f"{kind} has frozen itself {would}"
    else:
        text = f"{own}, which would be frozen"
    first = (thawed or projections)[0]
    if setting := _cure(part, first.rpartition(".")[0]):
        cures = [setting]
    elif lost:
        cures = [f"give APLAHook the plain model in place of {kind}, or leave APLAHook out and tune by {kind} alone"]
        cures += ["name in trainable=[...] what shall go on to train"] if not thawed else []
    else:
        cures = [f"build {kind} without frozen parameters"]
    further = [name for name in thawed if projection_of(name) not in projections]
    if left and len(further) < len(thawed):
        cures.append(f"adapt those alone that it leaves to train, by blocks={left}")
    if further:
        cures.append(f"have no pattern of trainable match {quoted(further, 3)}")
    raise ValueError(f"{text}. Nothing is thawed unsaid: {', or '.join(cures)}")


def _changed(model: nn.Module, expected: Mapping[str, bool]) -> dict[str, bool]:
    """Of the parameters that do not train as expected, whether they do."""
    now = requires_grad_of(model)
    return {name: trains for name, trains in now.items() if trains != expected.get(name, trains)}


def _restore(model: nn.Module, expected: Mapping[str, bool]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(expected[name])


def _whose_train(model: nn.Module, expected: Mapping[str, bool]) -> tuple[str, nn.Module, dict[str, bool]] | None:
    """The innermost module whose own ``train()`` changes what trains, and what that is; None if no single one's does.

    Args:
        model: The model; which parameters train must be as expected.
        expected: Names of parameters to whether they train.
    """
    for name, module in reversed(list(model.named_modules())):  # children come first
        if getattr(module.train, "__func__", None) is nn.Module.train:
            continue
        for mode in (True, False, True):
            module.train(mode)
        if changed := _changed(model, expected):
            _restore(model, expected)
            return name, module, changed
    return None


def _said(changed: Mapping[str, bool]) -> str:
    """What was done to parameters that train now, or do not, as a verb and their names."""
    frozen = [name.replace(".trained.", ".") for name, trains in changed.items() if not trains]
    thawed = [name.replace(".trained.", ".") for name, trains in changed.items() if trains]
    said = [f"freezes {len(frozen)} parameters that train: {quoted(frozen, 3)}"] if frozen else []
    said += [f"has {len(thawed)} frozen parameters train: {quoted(thawed, 3)}"] if thawed else []
    return ", and ".join(said)


def _cure(model: nn.Module, name: str) -> str:
    """The setting of the innermost module around a submodule by which it freezes, and what to set it to, if any."""
    steps = name.split(".") if name else []
    for depth in range(len(steps), -1, -1):
        path = ".".join(steps[:depth])
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        for key, value in vars(module).items():
            if not key.startswith("_") and any(word in key.lower() for word in _FREEZING):
                where = f"{f'{chr(39)}{path}{chr(39)}, ' if path else ''}{type(module).__name__}"
                if type(value) is int and value >= 0:
                    return f"set {key}=-1 of {where}, where it is {value}"
                if value is True:
                    return f"set {key}=False of {where}"
                if isinstance(value, str | list | tuple | set) and value and "all" not in value:
                    return f"see {key} of {where}, which is {value!r}"
    return ""
