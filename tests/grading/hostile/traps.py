"""What hostile submissions are after: a course with a secret in every place, and ears where they might call."""

import os
import secrets
import socket
import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import nbformat

from qlab.labs import notebooks
from tests.grading import REPOSITORY
from tests.grading.hostile import labs

SOLUTION_MARK = "### BEGIN SOLU" + "TION"  # in every solution of the course, and in no submission
FILLS = (
    "/qlab-hostile-file",
    "/tmp/qlab-hostile-file",
    "/tmp/qlab-hostile-fill",
    "/tmp/qlab-hostile-pickle",
    "/var/tmp/qlab-hostile-file",
    "/dev/shm/qlab-hostile-file",
    "/dev/shm/qlab-hostile",
    "/root/qlab-hostile-file",
)


@dataclass
class Traps:
    """A course folder whose every file holds the canary, and sockets that must hear nothing."""

    course: Path
    canary: str = field(default_factory=lambda: f"canary-{secrets.token_hex(12)}")
    name: str = field(default_factory=lambda: f"qlab-hostile-{secrets.token_hex(6)}")
    heard: list[str] = field(default_factory=list)
    _sockets: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._fill()
        os.environ["QLAB_HOSTILE_CANARY"] = self.canary
        self._listen(socket.AF_INET, ("127.0.0.1", 0))
        self._listen(socket.AF_UNIX, f"\0{self.name}")
        self._listen(socket.AF_UNIX, str(self.course / "listens"))
        self.before = self._contents()
        return self

    def __exit__(self, *error: object) -> None:
        del os.environ["QLAB_HOSTILE_CANARY"]
        for listening in self._sockets:
            listening.close()

    @property
    def port(self) -> int:
        return self._sockets[0].getsockname()[1]

    def placed(self, source: str) -> str:
        """Put the real places into a hostile source."""
        places = {"@COURSE@": str(self.course), "@REPOSITORY@": str(REPOSITORY), "@PORT@": str(self.port)}
        for mark, place in (places | {"@NAME@": self.name}).items():
            source = source.replace(mark, place)
        return source

    def require_untouched(self) -> None:
        """Fail where a file changed, a socket was reached, or something was left on this machine."""
        assert not self.heard, f"somebody reached {self.heard}"
        assert self._contents() == self.before, "the course was changed"
        left = [path for path in FILLS if Path(path).exists()]
        assert not left, f"{left} were left behind"

    def require_no_leak(self, notebook: nbformat.NotebookNode) -> None:
        """Fail where an output holds the canary, or a line of a solution."""
        shown = "\n".join(str(cell.get("outputs", "")) for cell in notebook.cells)
        for secret in (self.canary, SOLUTION_MARK):
            place = shown.find(secret)
            assert place < 0, f"leaked: {shown[max(0, place - 200) : place + 80]}"

    def _fill(self) -> None:
        secret = f"# {self.canary}\n"
        for lab in labs.TOPICS:
            notebook = labs.submission(lab, answers={}, opening=secret)
            for folder in (f"solutions/{lab}", f"submitted/ann/{lab}", f"autograded/ann/{lab}"):
                notebooks.write(notebook, self.course / folder / f"{lab}.ipynb")
        (self.course / "nbgrader_config.py").write_text(secret)
        (self.course / "journal.jsonl").write_text(f'{{"secret": "{self.canary}"}}\n')
        with sqlite3.connect(self.course / "gradebook.db") as book:
            book.execute("CREATE TABLE grade (auto_score REAL, manual_score REAL, secret TEXT)")
            book.execute("INSERT INTO grade VALUES (1, 0, ?)", (self.canary,))
        book.close()

    def _contents(self) -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in sorted(self.course.rglob("*")) if p.is_file()}

    def _listen(self, family: int, address: object) -> None:
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.bind(address)
        listening.listen()
        self._sockets.append(listening)

        def hear() -> None:
            while True:
                try:
                    listening.accept()[0].close()
                except OSError:  # closed
                    return
                self.heard.append(str(address))

        threading.Thread(target=hear, daemon=True).start()
