"""Convert a published checkpoint of EoMT (transformers' format) for EoMTHead on APLAViT.

apla-mm import-eomt model.safetensors eomt.pth                      # a segmentor of mmseg
apla-mm import-eomt model.safetensors eomt.pth --head panoptic_head # a detector of mmdet
The config has to be of the model's size: its ViT, patches, queries, classes and blocks.
"""

from collections.abc import Sequence
from pathlib import Path

from ..convert.eomt import convert_eomt
from ..convert.files import check_output, check_suffix, write_checkpoint
from ..delta.weights_file import read_weights
from . import command_parser, errors_in_one_line


@errors_in_one_line(OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("import-eomt", __doc__)
    parser.add_argument("checkpoint", type=Path, help="weights of EomtForUniversalSegmentation: .safetensors or .bin")
    parser.add_argument("out", type=Path, help="file to write: .pth or .safetensors")
    parser.add_argument(
        "--head", choices=["decode_head", "panoptic_head"], default="decode_head", help="of which model"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    args = parser.parse_args(argv)
    check_suffix(args.out)
    check_output(args.out, args.force, args.checkpoint)
    weights = read_weights(args.checkpoint)
    try:
        state = convert_eomt(weights.state, args.head)
    except ValueError as error:
        raise ValueError(f"'{args.checkpoint}': {error}") from error
    write_checkpoint(args.out, state, {})
    print(f"{args.out}: {len(state)} tensors")


if __name__ == "__main__":
    main()
