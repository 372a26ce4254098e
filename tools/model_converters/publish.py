"""``apla-mm publish``."""

from apla_mm.commands.publish import main

if __name__ == "__main__":
    main()
