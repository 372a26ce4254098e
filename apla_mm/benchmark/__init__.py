"""What ``apla-mm benchmark`` does: methods, a model that each is applied to, what is measured of it, and the table."""
