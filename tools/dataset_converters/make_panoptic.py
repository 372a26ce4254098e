"""``apla-mm make-panoptic``."""

from apla_mm.commands.make_panoptic import main

if __name__ == "__main__":
    main()
