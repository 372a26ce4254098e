"""``apla-mm merge``."""

from apla_mm.commands.merge import main

if __name__ == "__main__":
    main()
