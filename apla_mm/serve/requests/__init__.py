"""What a client may send, what of it is read, and what it is answered."""
