"""The rules of platform: what operators name, and whom to tell."""
