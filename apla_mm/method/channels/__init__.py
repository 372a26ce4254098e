"""Which output channels of a projection train: chosen at random, by score, from a file, now or once there is data."""
