"""``apla-mm delta-costs``."""

from apla_mm.commands.delta_costs import main

if __name__ == "__main__":
    main()
