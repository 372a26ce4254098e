"""Write a checkpoint or a delta for others: without what only training needs, named by date and content.

python tools/model_converters/publish.py work_dirs/seg/iter_160000.pth setr-pup_vit-b16_ade20k
"""

import argparse
from pathlib import Path

from apla_mm.convert.files import said_by_tool
from apla_mm.convert.publish import publish
from apla_mm.delta import load_delta
from apla_mm.delta.weights_file import Kind, kind_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="full checkpoint, delta or safetensors file")
    parser.add_argument("out", type=Path, help="becomes OUT_<yyyymmdd>-<sha256[:8]>.pth or .safetensors")
    parser.add_argument("--allow-nonfinite", action="store_true", help="take NaN and infinity in the weights")
    parser.add_argument("--force", action="store_true", help="overwrite a file of that name")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    path = publish(args.file, args.out, force=args.force, allow_nonfinite=args.allow_nonfinite)
    print(path)
    if kind_of(path) is Kind.DELTA and (name := load_delta(path, allow_nonfinite=True).header.extra.get("base_file")):
        print(f"It needs its base: publish the file {name} with it.")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {said_by_tool(error)}") from error
