"""Commands of the kernel. Those of a module are in its own `cli.py`."""
