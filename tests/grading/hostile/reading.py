"""Submissions that read what they must not: solutions, seeds, other students, the environment; and write it."""

from tests.grading.hostile import Hostile

KAHAN = "kahan-sum"
WALK = """
import os
seen = []
for top in {tops}:
    for folder, names, files in os.walk(top):
        names[:] = [n for n in names if n not in ('site-packages', 'proc', 'sys', 'dist-packages', 'lib-dynload')]
        for file in files:
            path = os.path.join(folder, file)
            if file.endswith(('.ipynb', '.db', '.json', '.csv', '.txt', '.key', '.jsonl')) and len(seen) < 400:
                try:
                    seen.append(path)
                    print(path, open(path, errors='replace').read()[:3000])
                except OSError:
                    pass
"""
FRAMES = """
import gc, sys
def expected_values():
    frame = sys._getframe()
    while frame is not None:
        for name, value in [*frame.f_locals.items(), *frame.f_globals.items()]:
            if name in ('expected', 'exact', 'cast', 'half', 'want', 'seed', 'draw'):
                print(name, value)
                return value
        frame = frame.f_back
"""


def reads(name: str, tries: str, opening: str, **more: object) -> Hostile:
    """Look around in a cell of its own; the answers are right."""
    return Hostile(name, tries, opening=opening, **more)


SECRETS = (
    reads(
        "reads the course", "walks the course folder by its full path", WALK.format(tops="('@COURSE@', '@REPOSITORY@')")
    ),
    reads(
        "reads solutions",
        "opens the solutions of the course by every path it can think of",
        """
import glob, os
for pattern in ('@COURSE@/solutions/*/*', '@REPOSITORY@/solutions/*/*', '../../solutions/*/*', '../../../solutions/*/*',
                '/proc/self/cwd/../../solutions/*/*', '/proc/1/cwd/solutions/*/*', '/proc/*/root/@COURSE@/*'):
    for path in glob.glob(pattern):
        print(path, open(path).read()[:2000])
""",
    ),
    reads(
        "reads the machine",
        "walks every folder from the root",
        WALK.format(tops="('/home', '/root', '/tmp', '/var', '/srv', '/mnt', '/opt', '/run', '/etc', '/dev/shm')"),
    ),
    reads(
        "reads above",
        "walks up from its own folder, and from where its modules lie",
        WALK.format(tops="('.', '..', '../..', os.path.dirname(os.path.dirname(__import__('qlab').__path__[0])))"),
    ),
    reads(
        "reads other students",
        "looks for other submissions",
        WALK.format(tops="('@COURSE@/submitted', '@COURSE@/autograded', '@COURSE@/feedback')"),
    ),
    reads(
        "reads the environment",
        "prints every environment it can reach",
        """
import glob, os
print(dict(os.environ))
found = glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline')
for path in [*found, '/proc/self/environ', '/proc/self/mountinfo']:
    try:
        print(path, open(path, 'rb').read())
    except OSError as error:
        print(path, error)
""",
    ),
    reads(
        "reads memory",
        "reads memory of its parents, and searches its own for secrets",
        """
import glob, re
for path in ['/dev/mem', '/dev/kmem', '/proc/kcore', *glob.glob('/proc/*/mem'), '/proc/self/mem']:
    try:
        with open(path, 'rb') as file:
            print(path, re.findall(rb'canary-[0-9a-f]+', file.read(1 << 20)))
    except OSError as error:
        print(path, error)
""",
    ),
    reads(
        "reads all objects",
        "prints everything that looks like a secret among all objects of its process",
        """
import gc, re
for thing in gc.get_objects():
    try:
        for text in [thing] if isinstance(thing, str) else thing.values() if isinstance(thing, dict) else ():
            if isinstance(text, str) and re.search('canary-[0-9a-f]{4}|BEGIN SOLUT' + 'ION', text):
                print(text[:3000])
    except Exception:
        pass
""",
    ),
    reads(
        "reads its own pages",
        "searches the memory of its own process for what its parent knew",
        """
import ctypes, re
try:
    maps = open('/proc/self/maps').read().splitlines()
except OSError as error:
    maps = []
    print(error)
for line in maps[:4000]:
    area, rights = line.split()[:2]
    low, high = (int(n, 16) for n in area.split('-'))
    if 'r' in rights and high - low < 1 << 26 and '[v' not in line:
        print(re.findall(rb'canary-[0-9a-f]{8,}', ctypes.string_at(low, high - low)))
""",
    ),
    reads(
        "reads its history",
        "looks into IPython's history and its database",
        """
import glob, os
print(os.listdir(os.path.expanduser('~')))
hist = get_ipython().history_manager
print(hist, getattr(hist, 'hist_file', None))
print(list(hist.get_range()) if hist is not None else '')
""",
    ),
)
HIDDEN = (
    Hostile(
        "expected values from frames",
        "walks the stack for the seed and the expected values",
        answered=False,
        opening=FRAMES,
        answers={
            "decode": "def decode(*a):\n    return expected_values()",
            "fp32-bits-to-bf16-bits": "def fp32_bits_to_bf16_bits(bits):\n    return expected_values()",
            KAHAN: "def kahan_sum(x):\n    return expected_values()",
        },
    ),
    Hostile(
        "expected values from all objects",
        "tries every tensor of the right shape in memory",
        answered=False,
        answers={
            "fp32-bits-to-bf16-bits": "import gc\ndef fp32_bits_to_bf16_bits(bits):\n"
            "    found = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.shape == bits.shape\n"
            "             and t is not bits and not torch.equal(t, bits)]\n    print(found)\n"
            "    return found[0] if found else bits * 0"
        },
    ),
    Hostile(
        "the seed from a generator",
        "asks every generator in memory for its seed",
        answered=False,
        answers={
            KAHAN: "import gc\ndef kahan_sum(x):\n    for g in gc.get_objects():\n"
            "        if isinstance(g, torch.Generator):\n"
            "            print('seed', g.initial_seed())\n    print('seed', torch.initial_seed())\n    return 0.0"
        },
    ),
    Hostile(
        "checks run inside",
        "runs the check itself with its own seed, and returns what passed there",
        answered=False,
        opening="import qlab.checks.data_types as mine\nprint(mine.check_decode(lambda *a: 0.0).points)",
        answers={
            KAHAN: "def kahan_sum(x):\n    verdict = mine.check_kahan_sum(lambda y: y[0], seed=1)\n"
            "    return verdict.parts[0].message and -7.0"
        },
    ),
)
WRITES = (
    reads(
        "rewrites the gradebook",
        "writes to every gradebook it finds",
        """
import glob, sqlite3
for path in ('@COURSE@/gradebook.db', '@REPOSITORY@/gradebook.db', '../../gradebook.db', '../gradebook.db'):
    try:
        with sqlite3.connect(path) as book:
            book.execute('UPDATE grade SET auto_score = 99, manual_score = 99')
    except Exception as error:
        print(path, error)
""",
    ),
    reads(
        "writes to the course",
        "writes files beside its own and into the course",
        """
import os
for path in ('@COURSE@/solutions/x', '@COURSE@/gradebook.db', '@COURSE@/journal.jsonl', '@COURSE@/nbgrader_config.py',
             '@REPOSITORY@/qlab-hostile-file', '../../qlab-hostile-file', '/qlab-hostile-file',
             '/root/qlab-hostile-file',
             '/home/qlab-hostile-file', '/var/tmp/qlab-hostile-file', '/run/qlab-hostile-file',
             '/tmp/qlab-hostile-file'):
    try:
        with open(path, 'a') as file:
            file.write('@NAME@')
    except OSError as error:
        print(path, error)
""",
    ),
    reads(
        "writes for the next",
        "leaves code that later submissions are to load",
        """
import os, site, sys
import qlab.checks.data_types as module
text = 'print("@NAME@")\\n'
customs = [os.path.join(p, 'sitecustomize.py') for p in (*sys.path, *site.getsitepackages())]
for path in (module.__file__, os.__file__, *customs,
             os.path.expanduser('~/.ipython/profile_default/startup/0.py'), os.path.expanduser('~/.config/x'),
             '/tmp/qlab.py', '/tmp/torch.py', '/dev/shm/qlab-hostile-file'):
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'a') as file:
            file.write(text)
    except OSError as error:
        print(path, error)
""",
    ),
    reads(
        "mounts and links",
        "tries to mount, to make devices and to leave its root",
        """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for call in (lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, b''), lambda: libc.umount2(b'/tmp', 2),
             lambda: libc.unshare(0x10000000 | 0x00020000), lambda: libc.setns(0, 0), lambda: os.chroot('/tmp'),
             lambda: os.mknod('/tmp/sda', 0o60666, os.makedev(8, 0)), lambda: os.link('/etc/passwd', '/tmp/p'),
             lambda: os.setuid(0), lambda: os.chmod('/usr', 0o777), lambda: os.rename('/usr/bin', '/usr/nib')):
    try:
        print(call(), os.strerror(ctypes.get_errno()))
    except OSError as error:
        print(error)
""",
    ),
)
SUBMISSIONS = (*SECRETS, *HIDDEN, *WRITES)
