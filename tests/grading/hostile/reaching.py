"""Submissions that reach for others: the network, sockets, signals, the judge's process and its memory."""

from tests.grading.hostile import Hostile

LISTENS = """
import socket
def reach(family, kind, address):
    try:
        with socket.socket(family, kind) as s:
            s.settimeout(0.3)
            s.connect(address)
            s.send(b'@NAME@')
            print('REACHED', address)
    except OSError as error:
        print(address, error)
"""


def reaches(name: str, tries: str, opening: str, **more: object) -> Hostile:
    """Reach out in a cell of its own; the answers are right."""
    return Hostile(name, tries, opening=opening, **more)


SUBMISSIONS = (
    reaches(
        "network",
        "connects to addresses outside and on this machine",
        LISTENS
        + """
for address in (('127.0.0.1', @PORT@), ('127.0.0.1', 22), ('1.1.1.1', 53), ('169.254.169.254', 80)):
    reach(socket.AF_INET, socket.SOCK_STREAM, address)
    reach(socket.AF_INET, socket.SOCK_DGRAM, address)
reach(socket.AF_INET6, socket.SOCK_STREAM, ('::1', @PORT@))
""",
    ),
    reaches(
        "names",
        "asks for addresses of names, with and without Python",
        """
import os, socket, subprocess, urllib.request
for ask in (lambda: socket.getaddrinfo('example.org', 80), lambda: socket.gethostbyname('localhost.example.org'),
            lambda: urllib.request.urlopen('http://example.org', timeout=0.3).read(),
            lambda: subprocess.run(['getent', 'hosts', 'example.org'], capture_output=True, timeout=1).stdout or 1 / 0):
    try:
        print('ASKED', ask())
    except Exception as error:
        print(error)
""",
    ),
    reaches(
        "abstract sockets",
        "connects to abstract and named sockets of this machine",
        LISTENS
        + """
reach(socket.AF_UNIX, socket.SOCK_STREAM, '\\0@NAME@')
reach(socket.AF_UNIX, socket.SOCK_STREAM, '@COURSE@/listens')
reach(socket.AF_UNIX, socket.SOCK_STREAM, '/run/dbus/system_bus_socket')
reach(socket.AF_UNIX, socket.SOCK_STREAM, '/var/run/docker.sock')
""",
    ),
    reaches(
        "odd sockets",
        "opens raw, packet, netlink, vsock and kernel-crypto sockets",
        """
import socket
for family, kind, number in ((2, 3, 255), (17, 3, 3), (16, 3, 0), (40, 1, 0), (38, 5, 0), (31, 3, 0)):
    try:
        socket.socket(family, kind, number)
        print('OPENED', family)
    except OSError as error:
        print(family, error)
""",
    ),
    reaches(
        "signals to all",
        "signals its parent, low numbers and every process it can name",
        """
import os
for pid in (os.getppid(), *range(2, 3000)):
    if pid not in (0, os.getpid()):
        try:
            os.kill(pid, 9)
        except OSError:
            pass
""",
        harms=True,
    ),
    reaches(
        "ptrace",
        "traces and reads its parent and other processes",
        """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for pid in (1, 2, os.getppid(), *range(3, 200)):
    if libc.ptrace(16, pid, 0, 0) == 0:
        print('TRACED', pid)
    buffer = ctypes.create_string_buffer(16)
    area = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 16)
    if pid != os.getpid() and libc.process_vm_readv(pid, area, 1, area, 1, 0) > 0:
        print('READ', pid)
""",
    ),
    reaches(
        "kernel doors",
        "calls what attacks on kernels begin with",
        """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
names = {'bpf': 321, 'userfaultfd': 323, 'perf_event_open': 298, 'io_uring_setup': 425, 'keyctl': 250, 'add_key': 248,
         'kexec_load': 246, 'init_module': 175, 'open_by_handle_at': 304, 'pidfd_open': 434, 'pidfd_getfd': 438}
for name, number in names.items():
    got = libc.syscall(number, 1, 0, 0, 0, 0)
    print(name, got, os.strerror(ctypes.get_errno()))
    if got >= 0 and name not in ('pidfd_open', 'keyctl'):
        print('OPENED', name)
""",
    ),
    reaches(
        "terminal",
        "types into the terminal of whoever grades",
        """
import fcntl, os, termios
for path in ('/dev/tty', '/dev/console', '/dev/pts/0', '/dev/pts/1', '/proc/self/fd/0'):
    try:
        fd = os.open(path, os.O_RDWR)
        fcntl.ioctl(fd, termios.TIOCSTI, b'x')
        print('TYPED', path)
    except OSError as error:
        print(path, error)
""",
    ),
    reaches(
        "shared memory",
        "looks for and fills shared memory, queues and semaphores",
        """
import ctypes, glob, mmap
libc = ctypes.CDLL(None, use_errno=True)
print(glob.glob('/dev/shm/*'), glob.glob('/dev/mqueue/*'))
for key in range(1, 50):
    got = libc.shmget(key, 4096, 0o1666)
try:
    from multiprocessing import shared_memory
    shared_memory.SharedMemory(name='qlab-hostile', create=True, size=1 << 20)
except Exception as error:
    print(error)
""",
    ),
    reaches(
        "priority",
        "raises its priority, its limits, and asks never to be killed",
        """
import os, resource
for call in (lambda: os.nice(-10), lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
             lambda: resource.setrlimit(resource.RLIMIT_NPROC, (10**6, 10**6)),
             lambda: open('/proc/self/oom_score_adj', 'w').write('-1000'),
             lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)), lambda: os.sched_setaffinity(0, {0})):
    try:
        print(call())
    except Exception as error:
        print(error)
""",
    ),
    reaches(
        "cgroups",
        "leaves its cgroup and changes others",
        """
import glob
import itertools
names = ('/sys/fs/cgroup/**/cgroup.procs', '/sys/fs/cgroup/**/tasks')
for path in itertools.chain(*(glob.glob(name, recursive=True) for name in names)):
    try:
        open(path, 'w').write('1')
        print('JOINED', path)
    except OSError as error:
        pass
""",
    ),
)
SHOUTS = ("REACHED", "ASKED", "OPENED", "TRACED", "TYPED", "JOINED")  # no output of these may hold one
