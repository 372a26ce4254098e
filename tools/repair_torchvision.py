"""``apla-mm repair-torchvision``."""

from apla_mm.commands.repair_torchvision import main

if __name__ == "__main__":
    main()
