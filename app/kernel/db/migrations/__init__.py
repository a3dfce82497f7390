"""Migrations: SQL files that yoyo applies, each once, however many processes start at once."""
