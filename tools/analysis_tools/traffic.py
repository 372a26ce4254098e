"""``apla-mm traffic``."""

from apla_mm.commands.traffic import main

if __name__ == "__main__":
    main()
