"""Who may do what: actors, sessions, permissions."""
