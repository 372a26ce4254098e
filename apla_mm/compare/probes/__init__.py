"""What a backbone's features tell about other data: probes of it, before and after training."""
