"""``apla-mm make-base``."""

from apla_mm.commands.make_base import main

if __name__ == "__main__":
    main()
