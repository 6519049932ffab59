"""What a sandbox sees of this machine: system and Python read-only, qlab, and nothing of the course or its people."""

import os
import site
import sys
from collections.abc import Iterator
from pathlib import Path

import qlab

INSIDE_COURSE = "/course"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
SETTINGS = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "fonts", "localtime")
PARTS_OF_PYTHON = ("bin", "lib", "lib64", "pyvenv.cfg")
DEVICES = ("null", "zero", "full", "random", "urandom")
NOBODY = "65534"
KEPT_CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE")  # of the zygote, within its own namespaces; children have none


def arguments(*, nested: bool, scratch_bytes: int) -> list[str]:
    """Return bubblewrap's arguments, up to the command it runs."""
    kept = [word for name in KEPT_CAPABILITIES for word in ("--cap-add", name)] if nested else []
    size = [] if nested else ["--size", str(scratch_bytes)]
    return [
        *("--unshare-all", "--unshare-user", "--as-pid-1", "--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox"),
        *("--cap-drop", "ALL", *kept, "--new-session", "--clearenv"),
        *_environment(),
        *(*size, "--tmpfs", "/tmp"),  # first: what follows may lie below it
        *_files(),
        *("--proc", "/proc", "--tmpfs", "/dev"),
        *(word for name in DEVICES for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")),
        *(("--dir",) if nested else (*size, "--tmpfs")),
        *("/dev/shm", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"),
    ]


def environment() -> dict[str, str]:
    """Return the variables a sandbox sees: nothing of the grader's own."""
    home = "/tmp/home"
    return {
        "PATH": os.pathsep.join(dict.fromkeys([str(Path(sys.executable).parent), "/usr/bin", "/bin"])),
        "PYTHONPATH": os.pathsep.join([str(_package().parent), *_other_packages()]),
        "HOME": home,
        "USER": "learner",
        "LOGNAME": "learner",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "XDG_CACHE_HOME": f"{home}/.cache",
        "IPYTHONDIR": f"{home}/.ipython",
        "MPLCONFIGDIR": f"{home}/.matplotlib",
        "MPLBACKEND": "Agg",
        "TRITON_CACHE_DIR": f"{home}/.triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{home}/.inductor",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "NBGRADER_EXECUTION": "autograde",
        "QLAB_ROOT": INSIDE_COURSE,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    }


def unsafe_environment() -> dict[str, str]:
    """Return the variables of a process without a sandbox: as much of the grader's as Python needs."""
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "LD_LIBRARY_PATH") if name in os.environ}
    course = _course_root()
    return environment() | kept | ({} if course is None else {"QLAB_ROOT": str(course)})


def _environment() -> Iterator[str]:
    for name, value in environment().items():
        yield from ("--setenv", name, value)


def _files() -> Iterator[str]:
    course = _course_root()
    shown = list(_system_paths())
    for path in map(Path, [sys.base_prefix, sys.prefix, *_other_packages()]):
        if not _within(path, shown):
            shown.append(path)
    for path in shown:
        yield from _shown(path)
    if course is not None and _within(course, shown):  # a course inside the environment it runs in
        yield from ("--tmpfs", str(course))
        shown = list(_parts_of_python(course))
        for path in shown:
            yield from _shown(path)
    if not _within(_package(), shown):
        yield from _shown(_package())
    yield from ("--dir", f"{INSIDE_COURSE}/labs", "--dir", f"{INSIDE_COURSE}/lessons")
    recorded = None if course is None else course / "lessons" / "recorded"
    if recorded is not None and recorded.is_dir():
        yield from ("--ro-bind", str(recorded), f"{INSIDE_COURSE}/lessons/recorded")


def _parts_of_python(course: Path) -> Iterator[Path]:
    """Yield what Python needs of a course's folder, where that folder is or holds the environment."""
    prefixes = [Path(sys.base_prefix), Path(sys.prefix), *map(Path, _other_packages())]
    for prefix in dict.fromkeys(prefixes):
        parts = [course / name for name in PARTS_OF_PYTHON] if prefix == course else [prefix]
        yield from (part for part in parts if part.is_relative_to(course) and part.exists())


def _shown(path: Path) -> tuple[str, ...]:
    return ("--ro-bind", str(path), str(path))


def _system_paths() -> Iterator[Path]:
    for name in (*SYSTEM, *(f"/etc/{setting}" for setting in SETTINGS)):
        if Path(name).exists():
            yield Path(name)


def _within(path: Path, shown: list[Path]) -> bool:
    return any(path.is_relative_to(parent) or path.resolve().is_relative_to(parent) for parent in shown)


def _package() -> Path:
    return Path(qlab.__file__).parent.absolute()


def _other_packages() -> list[str]:
    """Return the folders of packages that lie outside Python's own: a user's, a system's."""
    named = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"} and Path(path).is_dir()]
    user = site.getusersitepackages()
    inside = [Path(sys.prefix), Path(sys.base_prefix)]
    return [path for path in named if path == user or not any(Path(path).is_relative_to(prefix) for prefix in inside)]


def _course_root() -> Path | None:
    from qlab import course  # noqa: PLC0415 - not needed by those who only name this module

    try:
        return course.root()
    except FileNotFoundError:
        return None
