"""Migrations: SQL files that yoyo applies exactly once, also when many processes start at once."""
