"""What PostgreSQL runs as restore_command: asks the restoring process for a file of WAL. Only the standard library.

Arguments: a folder with the socket, the name of the file, its place. Exit code 0: it is there. Exit code 3: it is not
stored. All others: that could not be found out; also those of an interpreter that cannot start, which exits with 1.
"""

import os
import socket
import sys

FOUND, NOT_STORED, FAILED = b"0", b"1", b"2"
SOCKET = "socket"
NOT_STORED_STATUS = 3
PATIENCE_S = 600.0


def main(folder: str, name: str, place: str) -> int:
    """Fetch a file; return the exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(f"{folder}/{SOCKET}")
        connection.sendall(name.encode() + b"\n")
        answer = connection.recv(1)
    if answer == FOUND:
        os.replace(f"{folder}/{name}", place)  # noqa: PTH105 - pathlib takes longer to import than this to run
    return {FOUND: 0, NOT_STORED: NOT_STORED_STATUS}.get(answer, 2)


if __name__ == "__main__":
    try:
        status = main(*sys.argv[1:])
    except (OSError, TypeError) as error:
        sys.stderr.write(f"{error}\n")
        status = 2
    sys.exit(status)
