"""List the configs that come with the package, under the names that commands and _base_ take.

apla-mm configs
apla-mm configs dinov2            # those whose names have it
"""

from collections.abc import Sequence

from ..config_files import shipped_configs
from . import command_parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("configs", __doc__)
    parser.add_argument("part", nargs="?", default="", help="part of the names (default: all)")
    args = parser.parse_args(argv)
    names = [name for name in shipped_configs() if args.part in name]
    if not names:
        raise SystemExit(f"no config's name has '{args.part}' in it; apla-mm configs lists all")
    print("\n".join(names))


if __name__ == "__main__":
    main()
