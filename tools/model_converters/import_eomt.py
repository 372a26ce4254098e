"""``apla-mm import-eomt``."""

from apla_mm.commands.import_eomt import main

if __name__ == "__main__":
    main()
