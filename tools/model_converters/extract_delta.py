"""``apla-mm extract``."""

from apla_mm.commands.extract import main

if __name__ == "__main__":
    main()
