"""How much a submission may take: time, memory, processes, scratch space, output."""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """The limits of one submission; what passes one costs the cell or the exercise that did.

    Units:   seconds of wall-clock time, bytes.
    """

    cell_seconds: float = 120.0
    check_seconds: float = 60.0
    submission_seconds: float = 900.0
    memory_bytes: int = 4096 * MIB
    scratch_bytes: int = 256 * MIB
    output_bytes: int = 1 * MIB
    notebook_output_bytes: int = 16 * MIB
    message_bytes: int = 256 * MIB
    processes: int = 64
    open_files: int = 256
