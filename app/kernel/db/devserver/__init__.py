"""The embedded PostgreSQL of `local` and `test`. Its supervisor uses only the standard library."""
