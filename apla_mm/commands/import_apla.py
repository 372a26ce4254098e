"""Convert a checkpoint of the APLA authors' code, in which each projection is stored in two parts.

apla-mm import-apla authors.pth plain.pth
apla-mm import-apla authors.pth delta.safetensors --to delta --base vitb.safetensors \
    --base-prefix backbone.
Give the base wherever you have it: with it the frozen channels are checked to be its own, which shows 'inds' that are
not those of the weights. In the authors' code 'inds' are drawn when the model is built and not always restored by
loading; a checkpoint whose 'inds' are missing or do not fit is refused. Where projections trained in full
(partial_size: full), they are plain already. Of a student and a teacher --part takes one.
"""

import argparse
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..convert.authors import (
    check_full,
    check_not_resumed,
    full_projections,
    full_state,
    plain_state,
    read_authors,
)
from ..convert.files import check_output, check_suffix, write_checkpoint
from ..convert.full_checkpoint import delta_of
from ..delta import save_delta
from ..delta.base_file import save_base
from ..delta.weights_file import Weights, read_weights
from ..method.channels.selection import load_channels
from ..text import listed
from . import command_parser, errors_in_one_line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("import-apla", __doc__)
    parser.add_argument("checkpoint", type=Path, help="the authors' checkpoint: .pth")
    parser.add_argument("out", type=Path, help="file to write: .pth or .safetensors, of a delta .safetensors")
    parser.add_argument("--to", choices=["plain", "delta"], default="plain", help="what to write (default: plain)")
    parser.add_argument("--base", type=Path, help="weights before training; a delta needs them")
    parser.add_argument("--base-prefix", default="", help="what the checkpoint's names have before the base's")
    parser.add_argument("--part", choices=["student", "teacher"], help="which model, where the checkpoint holds both")
    parser.add_argument("--inds", type=Path, metavar="FILE.json", help="the file that training was given as inds_path")
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        default="=",
        help="replace what names begin with in OUT, such as backbone.=backbone.vit. for APLAViT",
    )
    parser.add_argument("--allow-nonfinite", action="store_true", help="take NaN and infinity into a delta")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    args = parser.parse_args(argv)
    if args.to == "delta" and (args.base is None or args.out.suffix != ".safetensors"):
        parser.error("--to delta needs --base, and an OUT that ends in .safetensors")
    if args.rename.count("=") != 1:
        parser.error("--rename takes OLD=NEW")
    args.rename = tuple(args.rename.split("="))
    return args


def renamed(name: str, old: str, new: str) -> str:
    return new + name[len(old) :] if name.startswith(old) else name


def all_renamed(state: Mapping[str, Tensor], old: str, new: str) -> OrderedDict[str, Tensor]:
    if not any(name.startswith(old) for name in state):
        raise ValueError(f"--rename {old}={new}: no name begins so; they look like '{next(iter(state))}'")
    counts = Counter(renamed(name, old, new) for name in state)
    if doubled := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"--rename {old}={new}: several tensors would be called {listed(doubled)}")
    return OrderedDict((renamed(name, old, new), tensor) for name, tensor in state.items())


@errors_in_one_line(OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_suffix(args.out)
    check_output(args.out, args.force, args.checkpoint, args.base)
    weights = read_authors(args.checkpoint, args.part)
    inds = load_channels(args.inds) if args.inds else None
    try:
        full = full_state(weights)
        if full is not None and inds is not None:
            raise ValueError("its projections trained in full, and nothing reads --inds: leave it out")
        state, channels = plain_state(weights.state, inds) if full is None else (full, {})
    except ValueError as error:
        raise ValueError(f"'{args.checkpoint}': {error}") from error
    plain = all_renamed(state, *args.rename)
    whole = None if full is None else f"{len(full_projections(full))} projections, trained in full"
    projections = whole or f"{len(channels)} projections put together"
    done = f"{args.out}: {len(plain)} tensors, {projections}"
    if args.base is None:
        write_checkpoint(args.out, plain, {})
        print(f"{done}; not checked against a base: see --base")
        return
    base = read_weights(args.base).state
    known = True
    if full is not None:
        check_full(full, base, args.base_prefix)
    elif inds is None:
        known = check_not_resumed(weights, base, args.base_prefix)
    iterations = weights.rest.get("iters")
    delta, tensors = delta_of(
        Weights(plain, dict(meta=dict(iter=iterations) if isinstance(iterations, int) else {})),
        base,
        base_prefix=renamed(args.base_prefix, *args.rename),
        channels={renamed(name, *args.rename): chosen.tolist() for name, chosen in channels.items()},
    )
    if args.to == "delta":
        delta.check(allow_nonfinite=args.allow_nonfinite)  # before its base is written
        path = save_base(tensors, args.out.parent / "bases")
        save_delta(delta, args.out, allow_nonfinite=args.allow_nonfinite)
        print(f"{args.out}: {whole or f'channels of {len(channels)} projections'}, base in {path}")
    else:
        write_checkpoint(args.out, plain, {})
        print(f"{done}; {'what was frozen is' if whole else 'its frozen channels are'} the base's")
    if not known:
        print(
            "Whether the run that saved it had been resumed is not known, as the checkpoint holds neither its settings "
            "('parameters') nor what it started from ('original_state'). If it had been, the authors' code trained "
            "other channels than its 'inds' say, and the trained channels are in wrong places: compare its scores with "
            "the authors'."
        )


if __name__ == "__main__":
    main()
