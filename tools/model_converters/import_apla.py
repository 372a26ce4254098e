"""Convert a checkpoint of the APLA authors' code, in which each projection is stored in two parts.

python tools/model_converters/import_apla.py authors.pth plain.pth
python tools/model_converters/import_apla.py authors.pth delta.safetensors --to delta --base vitb.safetensors \
    --base-prefix backbone.
Give the base wherever you have it: with it the frozen channels are checked to be its own, which shows 'inds' that are
not those of the weights. In the authors' code 'inds' are drawn when the model is built and not always restored by
loading; a checkpoint whose 'inds' are missing or do not fit is refused.
"""

import argparse
from collections import OrderedDict
from pathlib import Path

from apla_mm.checkpoint import save_delta
from apla_mm.checkpoint.base_file import save_base
from apla_mm.converters.authors import check_not_resumed, plain_state, read_authors
from apla_mm.converters.files import Weights, check_output, check_suffix, read_weights, write_checkpoint
from apla_mm.converters.full_checkpoint import delta_of
from apla_mm.method.selection import load_channels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the authors' checkpoint: .pth")
    parser.add_argument("out", type=Path, help="file to write: .pth or .safetensors, of a delta .safetensors")
    parser.add_argument("--to", choices=["plain", "delta"], default="plain", help="what to write (default: plain)")
    parser.add_argument("--base", type=Path, help="weights before training; a delta needs them")
    parser.add_argument("--base-prefix", default="", help="what the checkpoint's names have before the base's")
    parser.add_argument("--inds", type=Path, metavar="FILE.json", help="the file that training was given as inds_path")
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        help="replace what names begin with in OUT, such as backbone.=backbone.vit. for APLAViT",
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    args = parser.parse_args()
    if args.to == "delta" and (args.base is None or args.out.suffix != ".safetensors"):
        parser.error("--to delta needs --base, and an OUT that ends in .safetensors")
    if args.rename is not None and args.rename.count("=") != 1:
        parser.error("--rename takes OLD=NEW")
    return args


def renamed(name: str, rename: str | None) -> str:
    old, _, new = (rename or "=").partition("=")
    return new + name[len(old) :] if name.startswith(old) else name


def main() -> None:
    args = parse_args()
    check_suffix(args.out)
    check_output(args.out, args.force)
    weights = read_authors(args.checkpoint)
    inds = load_channels(args.inds) if args.inds else None
    try:
        state, channels = plain_state(weights.state, inds)
    except ValueError as error:
        raise ValueError(f"'{args.checkpoint}': {error}") from error
    prefix = renamed(args.base_prefix, args.rename)
    if args.rename and not any(name.startswith(args.rename.partition("=")[0]) for name in state):
        raise ValueError(f"--rename {args.rename}: no name begins so; they look like '{next(iter(state))}'")
    plain = OrderedDict((renamed(name, args.rename), tensor) for name, tensor in state.items())
    if args.base:
        base = read_weights(args.base).state
        if inds is None:
            check_not_resumed(weights, base, args.base_prefix)
        chosen = {renamed(name, args.rename): order.tolist() for name, order in channels.items()}
        delta, tensors = delta_of(Weights(plain), base, base_prefix=prefix, channels=chosen)
    if args.to == "delta":
        path = save_base(tensors, args.out.parent / "bases")
        save_delta(delta, args.out)
        print(f"{args.out}: channels of {len(channels)} projections, base in {path}")
        return
    write_checkpoint(args.out, plain, {})
    checked = "its frozen channels are the base's" if args.base else "not checked against a base: see --base"
    print(f"{args.out}: {len(plain)} tensors, {len(channels)} projections put together; {checked}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
