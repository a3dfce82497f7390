"""Shared by all modules. Imports none of them."""
