"""Commands of the kernel. A module has its own commands in `cli.py`."""
