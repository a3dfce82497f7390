"""Entities, rules and refusals of auth, and what it needs from outside."""
