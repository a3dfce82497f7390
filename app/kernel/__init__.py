"""What modules share. It knows no module."""
