"""Make panoptic files of annotated objects (COCO's format, with masks) and, for stuff, of label maps.

apla-mm make-panoptic instances_train.json panoptic_train.json --rest background
apla-mm make-panoptic instances_train.json panoptic_train.json --label-maps FOLDER --stuff sky=1 road=7
Maps of segments are written into a folder of the file's name. Where objects overlap the smaller one is on top.
"""

from collections.abc import Sequence
from pathlib import Path

from ..convert.panoptic import make_panoptic
from . import command_parser, errors_in_one_line


@errors_in_one_line(OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("make-panoptic", __doc__)
    parser.add_argument("objects", type=Path, help="annotation file")
    parser.add_argument("out", type=Path, help="panoptic annotation file to write: .json")
    parser.add_argument("--rest", metavar="NAME", help="class of stuff that all other pixels are (default: none)")
    parser.add_argument("--label-maps", type=Path, metavar="FOLDER", help="PNG of labels for each image, of its name")
    parser.add_argument("--stuff", nargs="+", default=[], metavar="NAME=LABEL", help="classes of stuff in label maps")
    args = parser.parse_args(argv)
    if bool(args.stuff) != bool(args.label_maps):
        parser.error("--label-maps and --stuff go together")
    pairs = [text.rpartition("=") for text in args.stuff]
    if wrong := ["".join(pair) for pair in pairs if not pair[0] or not pair[2].isdigit()]:
        parser.error(f"--stuff {wrong[0]}: write NAME=LABEL, as in sky=1")
    if len({name for name, _, _ in pairs}) != len(pairs):
        parser.error(f"--stuff {' '.join(args.stuff)}: a name has one label alone")
    stuff = {name: int(label) for name, _, label in pairs}
    print(make_panoptic(args.objects, args.out, args.rest, args.label_maps, stuff))


if __name__ == "__main__":
    main()
