"""``apla-mm mask-costs``."""

from apla_mm.commands.mask_costs import main

if __name__ == "__main__":
    main()
