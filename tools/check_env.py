"""``apla-mm check-env``."""

from apla_mm.commands.check_env import main

if __name__ == "__main__":
    main()
