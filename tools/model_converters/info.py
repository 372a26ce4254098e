"""``apla-mm info``."""

from apla_mm.commands.info import main

if __name__ == "__main__":
    main()
