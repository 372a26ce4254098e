"""What an adapted model keeps: frozen weights in half precision or sharded, activations computed again."""
