"""``apla-mm export``."""

from apla_mm.commands.export import main

if __name__ == "__main__":
    main()
