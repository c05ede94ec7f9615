"""Runs inside the sandbox, before the program: drops every right that the program does not need, then runs it.

    python -I confine.py LIMITS_JSON PROGRAM

Self-contained on purpose (standard library only): the sandbox starts it by its path. The kernel enforces what it can
(rlimits, seccomp, Landlock). The audit hook on top turns every attempt into one recognisable error, and is the only
layer where the kernel offers none. The report file names each layer in force.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import runpy
import struct
import sys
from typing import Any

__all__ = ["main"]

BLOCKED = "sandbox: blocked"

# Per machine: (audit architecture, clone, clone3, [process creation, sockets, signals and tracing to deny])
SYSCALLS: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    # fork vfork | socket socketpair | kill tkill ptrace process_vm_writev pidfd_send_signal | mount unshare setns bpf
    # io_uring_setup
    "x86_64": (0xC000003E, 56, 435, (57, 58, 41, 53, 62, 200, 101, 311, 424, 165, 272, 308, 321, 425)),
    "aarch64": (0xC00000B7, 220, 435, (198, 199, 129, 130, 117, 271, 424, 40, 97, 268, 280, 425)),
}
CLONE_THREAD = 0x00010000
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
# Landlock's rights. Without execute: a program that is only read gains no rights by running.
WRITE_FILE, READ_FILE, READ_FOLDER, REFER, TRUNCATE = (1 << bit for bit in (1, 2, 3, 13, 14))
CHANGE_FOLDER = 0b1_1111_1111_0000  # make and remove what it holds
# What Python and the libraries of numbers open; Python's own folders are added.
READABLE = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom", "/proc/cpuinfo",
    "/proc/meminfo", "/sys/devices/system/cpu",
)  # fmt: skip
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
BLOCKED_EVENTS = (
    "socket.",
    "subprocess.",
    "os.fork",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "os.kill",
    "pty.",
)
CHANGING_EVENTS = (
    "os.remove", "os.rmdir", "os.rename", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate",
    "shutil.rmtree", "shutil.move", "os.setxattr", "os.utime",
)  # fmt: skip
LISTING_EVENTS = ("os.listdir", "os.scandir")


def set_limits(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, bound))


def _filter(number: tuple[int, int, int, tuple[int, ...]]) -> bytes:
    """Classic BPF over (syscall, architecture, arguments): denied ones fail with EPERM, threads may be made."""
    architecture, clone, clone3, denied = number
    load, equal, has_bits, ret = 0x20, 0x15, 0x45, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (ret, 0, 0, EPERM), (load, 0, 0, 0)]
    program += [(0x35, 0, 1, 0x40000000), (ret, 0, 0, EPERM)]  # the x32 numbering would be a way round
    program += [(equal, 0, 1, clone3), (ret, 0, 0, ENOSYS)]  # flags unreadable here; libc falls back to clone
    program += [
        (equal, 0, 4, clone),
        (load, 0, 0, 16),
        (has_bits, 1, 0, CLONE_THREAD),
        (ret, 0, 0, EPERM),
        (ret, 0, 0, ALLOW),
    ]
    for syscall in denied:
        program += [(equal, 0, 1, syscall), (ret, 0, 0, EPERM)]
    program.append((ret, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in program)


def deny_syscalls(libc: Any) -> bool:
    number = SYSCALLS.get(platform.machine())
    if number is None or not sys.platform.startswith("linux"):
        return False
    code = _filter(number)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    return bool(libc.prctl(22, 2, ctypes.c_char_p(header), 0, 0) == 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def readable_paths(own: list[str]) -> list[str]:
    """Those that are there, links resolved. Not `sys.path`: an editable install puts a whole repository there."""
    pythons = (sys.prefix, sys.base_prefix, sys.exec_prefix)
    return sorted({os.path.realpath(path) for path in (*READABLE, *pythons, *own) if path and os.path.exists(path)})


def deny_files(libc: Any, folder: str, readable: list[str]) -> bool:
    """Landlock: only what lies below `folder` may be written, made or removed, only that and `readable` be read."""
    if not sys.platform.startswith("linux"):
        return False
    create, add_rule, restrict = 444, 445, 446
    version = libc.syscall(create, None, 0, 1)
    if version < 1:
        return False
    rights = WRITE_FILE | READ_FILE | READ_FOLDER | CHANGE_FOLDER
    rights |= (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    ruleset = libc.syscall(create, struct.pack("Q", rights), 8, 0)
    if ruleset < 0:
        return False
    rules = [(path, READ_FILE | (READ_FOLDER if os.path.isdir(path) else 0)) for path in readable]
    for path, allowed in (*rules, (folder, rights), ("/dev/null", WRITE_FILE)):
        parent = os.open(path, os.O_PATH)
        libc.syscall(add_rule, ruleset, 1, struct.pack("=Qi", allowed, parent), 0)
        os.close(parent)
    done = libc.syscall(restrict, ruleset, 0) == 0
    os.close(ruleset)
    return bool(done)


def add_hook(folder: str, readable: list[str]) -> None:
    own = os.path.realpath(folder)

    def is_outside(path: Any, *roots: str) -> bool:
        try:
            real = os.path.realpath(os.fsdecode(path))
        except (TypeError, ValueError):
            return False  # a file descriptor: it was opened under these rules
        return not any(real == root or real.startswith(root + os.sep) for root in roots)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(BLOCKED_EVENTS):
            raise PermissionError(f"{BLOCKED} {event}")
        if event == "open" and isinstance(args[0], str | bytes):
            if args[2] & WRITE_FLAGS and is_outside(args[0], own, "/dev/null"):
                raise PermissionError(f"{BLOCKED} writing {args[0]!r}")
            if is_outside(args[0], own, *readable):
                raise PermissionError(f"{BLOCKED} reading {args[0]!r}")
        elif event in LISTING_EVENTS and is_outside(args[0] or ".", own, *readable):
            raise PermissionError(f"{BLOCKED} listing {args[0]!r}")
        elif event in CHANGING_EVENTS and any(isinstance(a, str | bytes) and is_outside(a, own) for a in args[:2]):
            raise PermissionError(f"{BLOCKED} {event} {args[0]!r}")
        elif event == "ctypes.dlopen" and args[0] is not None and is_hook_all_there_is:
            raise PermissionError(f"{BLOCKED} {event}")

    is_hook_all_there_is = not layers["syscalls"]
    sys.addaudithook(hook)


layers: dict[str, bool] = {}


def main() -> None:
    settings, program = json.loads(sys.argv[1]), sys.argv[2]
    folder, readable = os.getcwd(), readable_paths([program, settings["input"]])
    with open(settings["report"], "w") as report:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        no_new_rights = sys.platform.startswith("linux") and libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        is_wanted = no_new_rights and settings["kernel"]
        layers["files"] = is_wanted and deny_files(libc, folder, readable)
        layers["syscalls"] = is_wanted and deny_syscalls(libc)
        json.dump(layers, report)
    set_limits(settings["limits"])
    add_hook(folder, readable)
    sys.argv[:] = [program]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
