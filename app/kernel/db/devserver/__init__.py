"""The embedded PostgreSQL of `local` and `test`. Its supervisor runs without the libraries of the app."""
