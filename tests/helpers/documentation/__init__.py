"""What runs the commands and the Python of the documentation, small, in real processes, with the files they name."""
