"""The system calls a submission may not make: a classic BPF filter that answers them with an error."""

import ctypes
import platform
import struct

from qlab.grading.inside import confine_calls as calls

EPERM, ENOSYS = 1, 38
X32_BIT = 0x40000000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
AF_UNIX = 1
THIS_PERSONALITY = 0xFFFFFFFF

LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_ANY_BIT, ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
ALLOW, ERROR, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000

# machine: (audit architecture, position of each name's number below)
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# name: (number on x86_64, number on aarch64); -1 where a machine has none.  Source: Linux 6.12, syscall tables
DENIED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "unshare": (272, 97),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "modify_ldt": (154, -1),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "set_mempolicy_home_node": (450, 450),
    # what is counted for all processes of one user together
    "inotify_init": (253, -1),
    "inotify_init1": (294, 26),
    # memory that no limit of a process counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
CLONE, CLONE3 = (56, 220), (435, 435)
SOCKET, SOCKETPAIR = (41, 198), (53, 199)
IOCTL, PERSONALITY = (16, 29), (135, 92)


def install() -> None:
    """Filter the system calls of this process and all it starts, for good.

    Errors:  OSError if the kernel refuses, or this machine's calls are not known here.
    """
    code = program(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    record = Program(len(code) // 8, ctypes.addressof(buffer))
    calls.prctl("no new privileges", calls.PR_SET_NO_NEW_PRIVS, 1)
    mode_filter = ctypes.c_ulong(2)
    calls.checked("seccomp", calls.libc().prctl, calls.PR_SET_SECCOMP, mode_filter, ctypes.byref(record), 0, 0)


def program(machine: str) -> bytes:
    """Return the filter for one kind of machine, 8 bytes an instruction.

    Errors:  OSError if the machine's system calls are not known here.
    """
    if machine not in ARCHITECTURES:
        raise OSError(f"no table of system calls for {machine}")
    architecture, column = ARCHITECTURES[machine]
    lines = [
        _line(LOAD, ARCHITECTURE_AT),
        _line(JUMP_IF_EQUAL, architecture, yes=1),
        _line(ANSWER, KILL_PROCESS),  # a 32-bit program on a 64-bit kernel has other numbers
        _line(LOAD, NUMBER_AT),
        _line(JUMP_IF_AT_LEAST, X32_BIT, no=1),
        _line(ANSWER, ERROR | ENOSYS),
    ]
    for numbers in DENIED.values():
        if numbers[column] >= 0:
            lines += [_line(JUMP_IF_EQUAL, numbers[column], no=1), _line(ANSWER, ERROR | EPERM)]
    lines += [_line(JUMP_IF_EQUAL, CLONE3[column], no=1), _line(ANSWER, ERROR | ENOSYS)]  # libc falls back to clone
    namespaces = calls.NEW_NAMESPACES  # without CLONE_NEWTIME: in clone, those bits are the exit signal
    lines += _when(CLONE[column], 0, [_line(JUMP_IF_ANY_BIT, namespaces, no=1), _line(ANSWER, ERROR | EPERM)])
    for numbers in (SOCKET, SOCKETPAIR):
        lines += _when(numbers[column], 0, _unless([AF_UNIX]))
    lines += _when(PERSONALITY[column], 0, _unless([0, THIS_PERSONALITY]))
    typing = [_line(JUMP_IF_EQUAL, TIOCSTI, yes=1), _line(JUMP_IF_EQUAL, TIOCLINUX, no=1), _line(ANSWER, ERROR | EPERM)]
    lines += _when(IOCTL[column], 1, typing)
    return b"".join([*lines, _line(ANSWER, ALLOW)])


def _line(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)


def _when(number: int, argument: int, rules: list[bytes]) -> list[bytes]:
    """For one call, load the low half of an argument, apply rules that may answer, then allow it."""
    inside = [_line(LOAD, ARGUMENTS_AT + 8 * argument), *rules, _line(ANSWER, ALLOW)]
    return [_line(JUMP_IF_EQUAL, number, no=len(inside)), *inside]


def _unless(allowed: list[int]) -> list[bytes]:
    """Rules that refuse every value but these."""
    left = range(len(allowed), 0, -1)
    jumps = [_line(JUMP_IF_EQUAL, value, yes=remaining) for value, remaining in zip(allowed, left, strict=True)]
    return [*jumps, _line(ANSWER, ERROR | EPERM)]
