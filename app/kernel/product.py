"""Name and version of the product. `just rename NAME` renames the package, and everything that is named after it."""

NAME = __name__.partition(".")[0]
VERSION = "0.1.0"
