"""``apla-mm knn``."""

from apla_mm.commands.knn import main

if __name__ == "__main__":
    main()
