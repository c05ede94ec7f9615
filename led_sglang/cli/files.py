"""The user's files, read and written at one place: UTF-8 text, and errors that name file, line and remedy."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from led_sglang.cli.endings import CommandError

__all__ = [
    "FileError",
    "append_line",
    "check_file",
    "check_folder",
    "json_document",
    "json_lines",
    "json_object",
    "kind_of",
    "text_lines",
    "whole_text",
    "write_text",
]

BOM = b"\xef\xbb\xbf"
OTHER_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
PROBE_BYTES = 4096


class FileError(CommandError):
    """A file that cannot be read, written or understood."""


def text_lines(path: Path, is_cut_short: bool = False) -> Iterator[tuple[str, str]]:
    """(place, text) of each line, its end and a byte-order mark taken off; a place is `file:line`. Raises FileError.

    `is_cut_short`: a last line without an end is what a kill left of one, and is left out.
    """
    for number, line in enumerate(_raw_lines(path), 1):
        if is_cut_short and not line.endswith(b"\n"):
            return
        where = f"{path}:{number}"
        yield where, decode(line if number > 1 else _without_mark(line, where), where).rstrip("\r\n")


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        raise FileError(f"{path} is missing") from None
    except IsADirectoryError:
        raise FileError(f"{path} is a directory, not a file") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error


def _without_mark(line: bytes, where: str) -> bytes:
    for mark, encoding in OTHER_MARKS:
        if line.startswith(mark):
            raise FileError(f"{where}: begins with {mark.hex(' ')}, the mark of {encoding}: save the file as UTF-8")
    return line.removeprefix(BOM)


def decode(line: bytes, where: str) -> str:
    """UTF-8 without NUL. Raises FileError that names the byte."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} of the line, 0x{line[error.start]:02x}"
        raise FileError(f"{where}: {byte}, is not UTF-8: save the file as UTF-8") from None
    if "\0" in text:
        raise FileError(f"{where}: byte {line.index(0) + 1} of the line is NUL: binary or UTF-16, not UTF-8 text")
    return text


def read_text(path: Path) -> str:
    """The whole file, lines ended by a newline each. Raises FileError."""
    return "".join(f"{line}\n" for _, line in text_lines(path))


def json_of(text: str, where: str) -> Any:
    """Raises FileError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits; brackets in brackets in brackets
        raise FileError(f"{where}: not JSON that can be read: {error}") from None


def json_object(text: str, where: str) -> dict[str, Any]:
    """Raises FileError."""
    value = json_of(text, where)
    if not isinstance(value, dict):
        raise FileError(f"{where}: not a JSON object but {kind_of(value)}")
    return value


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each line that is not blank. Raises FileError."""
    for where, line in text_lines(path):
        if line.strip():
            yield where, json_object(line, where)


def json_document(path: Path) -> dict[str, Any]:
    """A file that is one JSON object. Raises FileError."""
    text = read_text(path)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        pass
    return json_object(text, str(path))


def whole_text(text: str, where: str) -> str:
    """Text that can be sent. Raises FileError for half a character, which JSON can spell and UTF-8 cannot."""
    half = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
    if half is not None:
        raise FileError(f"{where}: \\u{ord(half):04x} is half a character (a surrogate without its other half)")
    return text


def kind_of(value: object) -> str:
    """A JSON value's type, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def check_folder(path: Path) -> None:
    """Make the folder and write to it, so that a long work does not end without a place. Raises FileError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
    except FileExistsError as error:
        raise FileError(f"{error.filename} is a file, not a folder") from None
    except NotADirectoryError:
        raise FileError(f"{path} lies below a file, not a folder") from None
    except OSError as error:
        raise FileError(f"{path} cannot be written to: {error.strerror}") from error


def check_file(path: Path) -> None:
    """Make the file's folder and check that the file can be written; it keeps its content. Raises FileError."""
    if path.is_dir():
        raise FileError(f"{path} is a directory, not a file")
    if not path.exists():
        check_folder(path.parent)
        return
    try:
        with path.open("ab") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(mode) and not file.isatty():  # /dev/full fails at a write, not when it is opened
                file.write(b"\n")
    except OSError as error:
        raise FileError(f"{path} cannot be written to: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Raises FileError."""
    try:
        # The text may hold a file name that is not UTF-8, or half a character of a model.
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise FileError(f"{path} cannot be written to: {error.strerror}") from error


def append_line(path: Path, line: str) -> None:
    """Raises FileError."""
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")
    except OSError as error:
        raise FileError(f"{path} cannot be written to: {error.strerror}") from error
