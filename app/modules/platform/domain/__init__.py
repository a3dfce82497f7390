"""The rules of platform: refusals to operators, and messages about errors."""
