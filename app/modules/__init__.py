"""The modules of this product. A new module is a folder here and its name below."""

MODULES = ("auth", "platform")
