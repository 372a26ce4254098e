"""``apla-mm sweep``."""

from apla_mm.commands.sweep import main

if __name__ == "__main__":
    main()
