"""Chaos: real processes are killed, frozen and cut off from their database; then everything is counted."""
