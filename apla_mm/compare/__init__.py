"""Fair comparisons of tuning methods: each at its own best learning rate from equally many trials, on several seeds."""
