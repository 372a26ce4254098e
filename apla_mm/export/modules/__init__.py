"""Models as one module each, from bytes to results, in operators that every exporter has."""
