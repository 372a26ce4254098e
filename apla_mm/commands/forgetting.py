"""What the methods of a comparison made a backbone forget: its frozen features on other data, before and after.

apla-mm forgetting work_dirs/comparison FOLDER

FOLDER has a folder of images for each class, or images/ and annotations/ with label maps. For the base and each final
run: k-NN and a linear classifier on its frozen features (of images, or of patches), and how far these moved (linear
CKA). Writes forgetting_FOLDER'S NAME.md beside the comparison's report.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..compare.probes.forgetting import forgetting
from ..compare.probes.probe import probe_data
from ..delta.atomic_file import write_atomic
from . import command_parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("forgetting", __doc__)
    parser.add_argument("comparison", type=Path, help="the --work-dir of apla-mm compare")
    parser.add_argument("data", type=Path, help="folder of labelled images that no run was trained on")
    parser.add_argument("--img-size", type=int, help="height and width (default: that of the model's preprocessor)")
    parser.add_argument("--most", type=int, default=500, help="images that are taken (default: 500)")
    args = parser.parse_args(argv)
    torch.set_grad_enabled(False)
    try:
        found = forgetting(args.comparison, probe_data(args.data, args.most), args.img_size, print)
    except ValueError as error:
        raise SystemExit(f"{error}") from error
    text = f"# Forgetting, by {args.data.resolve().name}\n\n{found.as_table()}\n"
    write_atomic(text.encode(), args.comparison / f"forgetting_{args.data.resolve().name}.md")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
