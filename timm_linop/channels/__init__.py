"""Coupled channels: what must go together, cutting it, and proving that nothing else changed."""
