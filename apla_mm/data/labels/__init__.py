"""Label maps, looked at before training."""
