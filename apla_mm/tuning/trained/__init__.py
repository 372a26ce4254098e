"""What of a model trains: told, proved, and kept so to the end."""
