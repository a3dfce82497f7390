"""A module that counts what is done for it. `Deployment` puts it into a copy of the project."""
