"""Write a folder of a checkpoint or a delta that a hub takes: weights, config and a card.

apla-mm card work_dirs/seg/best.delta.safetensors my-model --license apache-2.0 --data "150 photographs of animals"
huggingface-cli upload USER/my-model my-model          # anyone then: apla_mm.load("hf://USER/my-model")
"""

from collections.abc import Sequence
from pathlib import Path

from ..hub import write_folder
from . import command_parser, errors_in_one_line


@errors_in_one_line(OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("card", __doc__)
    parser.add_argument("file", type=Path, help="checkpoint or delta")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--license", required=True, help="of these weights, as hubs call it, such as apache-2.0")
    parser.add_argument("--title", help="of the model (default: the folder's name)")
    parser.add_argument("--base-model", help="what it was adapted from, as hubs call it")
    parser.add_argument("--data", help="what it was trained on, in words")
    parser.add_argument("--command", help="that trained it")
    parser.add_argument("--without-base", action="store_true", help="leave a delta's base file out")
    args = parser.parse_args(argv)
    about = dict(title=args.title, base_model=args.base_model, data=args.data, command=args.command)
    print(write_folder(args.file, args.out, license=args.license, with_base=not args.without_base, **about))


if __name__ == "__main__":
    main()
