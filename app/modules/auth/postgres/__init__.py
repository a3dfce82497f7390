"""Repositories of auth: SQL beside its method."""
