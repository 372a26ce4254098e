"""What computes in place of attention that is not fused."""
