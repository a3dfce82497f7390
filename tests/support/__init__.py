"""What tests share: a copy of the project, its processes, servers."""
