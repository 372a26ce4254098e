"""``apla-mm import-apla``."""

from apla_mm.commands.import_apla import main

if __name__ == "__main__":
    main()
