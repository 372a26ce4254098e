"""Training that survives, under mmengine's Runner: loop, checkpoints, resuming, signals."""
