"""``apla-mm benchmark``."""

from apla_mm.commands.benchmark import main

if __name__ == "__main__":
    main()
