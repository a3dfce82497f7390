"""Redis or Valkey, shared by the processes: what is in it may be lost at any time, and PostgreSQL has the truth."""
