"""Bodies for the processor."""
