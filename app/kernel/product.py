"""The name of the product. Package, command, service, tokens, API keys and embedded database are named after it.

It is the name of the package, which `just rename NAME` changes.
"""

NAME = __name__.partition(".")[0]
VERSION = "0.1.0"
