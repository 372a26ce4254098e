"""``apla-mm forgetting``."""

from apla_mm.commands.forgetting import main

if __name__ == "__main__":
    main()
