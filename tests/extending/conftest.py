"""The module here is of docs/modules.md; `tests/test_extending.py` tests it in a copy of the project."""

collect_ignore_glob = ["*"]
