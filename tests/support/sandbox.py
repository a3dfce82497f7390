"""Runs a command under what a unit denies it, as far as a process can deny it to itself without systemd.

    python tests/support/sandbox.py '["MemoryDenyWriteExecute=yes", ...]' COMMAND...

Covers no new privileges, no capabilities, no memory that is writable and executable, the system calls and address
families of the filters, and the umask; not mounts, devices, users and namespaces.
"""

import ctypes
import ctypes.util
import json
import os
import socket
import subprocess
import sys

PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_SET_MDWE = 38, 24, 65
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
EPERM, EAFNOSUPPORT, EQUAL, LAST_CAPABILITY = 1, 97, 4, 40


class Argument(ctypes.Structure):
    """`struct scmp_arg_cmp` of libseccomp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def calls(group: str) -> set[str]:
    """Return the system calls of a group such as `@system-service`."""
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", group], capture_output=True, text=True, check=True
    )
    found: set[str] = set()
    for line in listed.stdout.splitlines()[1:]:
        name = line.split("#")[0].strip()
        found |= calls(name) if name.startswith("@") else {name} if name else set()
    return found


def allowed(filters: list[str]) -> set[str]:
    """Return what the lines of SystemCallFilter allow, in their order."""
    found: set[str] = calls("@default")
    for line in filters:
        named = {call for word in line.lstrip("~").split() for call in calls(word)}
        found = found - named if line.startswith("~") else found | named
    return found


def restrict_calls(filters: list[str], families: list[str]) -> None:
    """Refuse other system calls with EPERM, and other address families with EAFNOSUPPORT."""
    lib = ctypes.CDLL(ctypes.util.find_library("seccomp"), use_errno=True)
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(ERRNO | EPERM)))
    for name in sorted(allowed(filters) - {"socket"}):
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            assert lib.seccomp_rule_add_array(context, ctypes.c_uint32(ALLOW), number, 0, None) == 0, name
    number = lib.seccomp_syscall_resolve_name(b"socket")
    for family in range(64):
        is_allowed = any(family == getattr(socket, name) for name in families)
        action = ALLOW if is_allowed else ERRNO | EAFNOSUPPORT
        rule = Argument(0, EQUAL, family, 0)
        assert lib.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, 1, ctypes.byref(rule)) == 0
    assert lib.seccomp_load(context) == 0


def main() -> None:
    lines, command = json.loads(sys.argv[1]), sys.argv[2:]
    values: dict[str, list[str]] = {}
    for line in lines:
        name, _, value = line.partition("=")
        values.setdefault(name, []).append(value)
    libc = ctypes.CDLL(None, use_errno=True)
    os.umask(int(values["UMask"][0], 8))
    assert values["CapabilityBoundingSet"] == [""]
    if os.geteuid() == 0:
        for capability in range(LAST_CAPABILITY + 1):
            assert libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0
    assert values["NoNewPrivileges"] == ["yes"]
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert values["MemoryDenyWriteExecute"] == ["yes"]
    if libc.prctl(PR_SET_MDWE, 1, 0, 0, 0) != 0:
        sys.stderr.write("not checked: this kernel is older than 6.3 and has no PR_SET_MDWE\n")
    restrict_calls(values["SystemCallFilter"], values["RestrictAddressFamilies"][0].split())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
