"""What the project promises about speed and size, measured. See README.md."""
