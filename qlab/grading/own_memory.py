"""How much memory a process that judges may take: a submission that asks for more loses its part of a check."""

import resource
from pathlib import Path

MOST_BYTES = 4 * 2**30  # beyond what the process has before it judges
KIB = 1_024


def bound(most_bytes: int = MOST_BYTES) -> int:
    """Let this process take so many more bytes of data than it has, and return the limit that it had before.

    What asks for more gets a MemoryError, or torch's RuntimeError. Without /proc nothing is bounded.
    """
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if (taken := _data_bytes()) is not None:
        lowered = [limit for limit in (before, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([taken + most_bytes, *lowered]), hard))
    return before


def restore(before: int) -> None:
    """Put back the limit that `bound` returned."""
    resource.setrlimit(resource.RLIMIT_DATA, (before, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _data_bytes() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmData:")), "")
    return int(line.split()[1]) * KIB if line else None
