"""Convert a published checkpoint of EoMT (transformers' format) for EoMTHead on APLAViT.

python tools/model_converters/import_eomt.py model.safetensors eomt.pth                      # a segmentor of mmseg
python tools/model_converters/import_eomt.py model.safetensors eomt.pth --head panoptic_head # a detector of mmdet
The config has to be of the model's size: its ViT, patches, queries, classes and blocks.
"""

import argparse
from pathlib import Path

from apla_mm.convert.eomt import convert_eomt
from apla_mm.convert.files import check_output, check_suffix, said_by_tool, write_checkpoint
from apla_mm.delta.weights_file import read_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="weights of EomtForUniversalSegmentation: .safetensors or .bin")
    parser.add_argument("out", type=Path, help="file to write: .pth or .safetensors")
    parser.add_argument(
        "--head", choices=["decode_head", "panoptic_head"], default="decode_head", help="of which model"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    args = parser.parse_args()
    check_suffix(args.out)
    check_output(args.out, args.force)
    try:
        state = convert_eomt(read_weights(args.checkpoint).state, args.head)
    except ValueError as error:
        raise ValueError(f"'{args.checkpoint}': {error}") from error
    write_checkpoint(args.out, state, {})
    print(f"{args.out}: {len(state)} tensors")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {said_by_tool(error)}") from error
