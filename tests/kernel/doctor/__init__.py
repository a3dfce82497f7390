"""Faults that are really planted, and found by exactly the check whose they are."""
