"""``apla-mm compare``."""

from apla_mm.commands.compare import main

if __name__ == "__main__":
    main()
