"""What a cell puts out, gathered as outputs of nbformat and cut at a size."""

import base64
import ctypes
import io
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any, BinaryIO

OUTPUT_OVERHEAD = 1_000  # bytes that each output costs besides its text
LONGEST_TRACEBACK = 20_000
LONGEST_VALUE = 2_000


class Outputs:
    """The outputs of one cell at a time, at most so many bytes of them."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._left, self._cut, self._clear = self._most, False, False
        self._taken: list[dict[str, Any]] = []
        self._shown: dict[str, dict[str, Any]] = {}

    def write(self, name: str, text: str) -> None:
        """Add text to a stream, `stdout` or `stderr`."""
        self._cleared()
        last = self._taken[-1] if self._taken else {}
        if last.get("name") != name:
            if not text or not self._pays(OUTPUT_OVERHEAD):
                return
            last = {"output_type": "stream", "name": name, "text": []}
            self._taken.append(last)
        last["text"].append(self._afforded(text))

    def show(self, output_type: str, data: Mapping[str, Any], metadata: Any, **more: Any) -> dict[str, Any] | None:
        """Add a `display_data` or an `execute_result`, unless it is too large; return what was added."""
        self._cleared()
        plain = plain_data(data)
        if not self._pays(OUTPUT_OVERHEAD + len(json.dumps(plain))):
            return None
        noted = _plain(metadata)
        output = {"output_type": output_type, "data": plain, "metadata": noted if isinstance(noted, dict) else {}}
        self._taken.append(output | more)
        return self._taken[-1]

    def show_as(self, display_id: str, data: Mapping[str, Any], metadata: Any, *, update: bool) -> None:
        """Add a display that has an id, or put new data into the one that has it."""
        known = self._shown.get(display_id)
        if update and known is not None:
            plain = plain_data(data)
            if self._pays(len(json.dumps(plain))):
                known["data"] = plain
        elif shown := self.show("display_data", data, metadata):
            self._shown[display_id] = shown

    def fail(self, name: str, value: str, lines: list[str]) -> None:
        """Add an error; it is kept however much was written before it."""
        text = _text("\n".join(lines))
        if len(text) > LONGEST_TRACEBACK:
            text = f"{text[: LONGEST_TRACEBACK // 2]}\n…\n{text[-LONGEST_TRACEBACK // 2 :]}"
        value = _text(value)[:LONGEST_VALUE]
        errors = sum(output["output_type"] == "error" for output in self._taken)
        if errors < 10:
            self._taken.append(
                {"output_type": "error", "ename": _text(name)[:200], "evalue": value, "traceback": text.split("\n")}
            )

    def stopped(self, seconds: float) -> None:
        """Say that the cell was stopped, in the place of the errors that the stopping made."""
        self._taken = [output for output in self._taken if output["output_type"] != "error"]
        self.fail("TimeoutError", f"this cell ran for {seconds:.3g} seconds and was stopped", [])

    def clear(self, *, wait: bool) -> None:
        """Forget what the cell has put out so far: at once, or when it puts out more."""
        self._clear = True
        if not wait:
            self._cleared()

    def taken(self) -> list[dict[str, Any]]:
        """Return the outputs since `begin`, and say so where they were cut."""
        outputs = [o | {"text": "".join(o["text"])} if o["output_type"] == "stream" else o for o in list(self._taken)]
        if self._cut:
            said = f"[what this cell puts out is cut here: it may put out {self._most:,} bytes]\n"
            outputs.append({"output_type": "stream", "name": "stderr", "text": said})
        return outputs

    def _cleared(self) -> None:
        if self._clear:
            self._taken, self._shown, self._clear = [], {}, False

    def _afforded(self, text: str) -> str:
        raw = text[: self._left + 1].encode("utf-8", "replace")
        self._cut = self._cut or len(raw) > self._left
        raw = raw[: self._left]
        self._left -= len(raw)
        return raw.decode("utf-8", "ignore")

    def _pays(self, size: int) -> bool:
        if self._cut or size > self._left:
            self._cut = True
            return False
        self._left -= size
        return True


class Stream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` of a cell."""

    encoding, errors = "utf-8", "replace"

    def __init__(self, name: str, descriptor: int, outputs: Outputs) -> None:
        self.name, self._descriptor, self._outputs = f"<{name}>", descriptor, outputs
        self._stream = name

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._outputs.write(self._stream, str(text))
        return len(text)

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Stay open: the next cell writes too."""


class Descriptor:
    """A file in the place of descriptor 1 or 2: what compiled code and programs write there is read after the cell."""

    def __init__(self, number: int, name: str) -> None:
        self._number, self._name = number, name
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives
        self.place()

    def place(self) -> None:
        """Put the file where the descriptor is, whatever a cell has put there."""
        os.dup2(self._file.fileno(), self._number)

    def collect(self, outputs: Outputs, *, most_bytes: int) -> None:
        """Hand over what was written since the last time."""
        size = os.fstat(self._file.fileno()).st_size
        if size:
            outputs.write(self._name, os.pread(self._file.fileno(), most_bytes + 1, 0).decode("utf-8", "replace"))
            self.discard()

    def discard(self) -> None:
        """Forget what was written since the last time."""
        os.ftruncate(self._file.fileno(), 0)
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)


def flush_compiled() -> None:
    """Make the C library write out what it holds back."""
    ctypes.CDLL(None).fflush(None)


def plain_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a display by media type as plain JSON: bytes in base64, other objects left out."""
    kept = {}
    for mime, value in dict(data).items():
        if isinstance(value, bytes):
            kept[str(mime)] = base64.b64encode(value).decode("ascii")
        elif isinstance(value, str):
            kept[str(mime)] = _text(value)
        elif (plain := _plain(value)) is not None:
            kept[str(mime)] = plain
    return kept


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return None


def _text(value: str) -> str:
    return str(value).encode("utf-8", "replace").decode("utf-8")
