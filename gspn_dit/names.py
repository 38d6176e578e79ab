"""Names as text: a file system allows any bytes but / and NUL in them, and not all of these are clean text.

Python decodes a name's bytes by the locale, and what is no text there becomes lone surrogates. Here such a name
becomes the same everywhere (`canonical`), and readable on one line (`printable`); streams that would refuse one take
it after `forgive`, libraries that would as `utf8_path`.
"""

import codecs
import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

ESCAPE = "gspn_dit.escape"
"""The error handler of `forgive`."""
UNCLEAN = ("Cc", "Cs", "Zl", "Zp")
"""Categories of Unicode that end a line, drive a terminal, or are no characters."""
WRITTEN = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}


def canonical(name: str) -> str:
    """A name as it is where the locale is UTF-8, whatever the locale here: the same bytes give the same string."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return name


def printable(name: object) -> str:
    r"""A name, or a message that holds some, as one line of clean text: other bytes become \xf1, a line's end \n."""
    text = canonical(str(name))
    if text.isprintable():
        return text
    return "".join(escape(c) if unicodedata.category(c) in UNCLEAN else c for c in text)


@contextlib.contextmanager
def utf8_path(path: str | Path) -> Iterator[str]:
    """A path that libraries of other languages take for this file or folder, within the context.

    It is the path itself where its bytes are UTF-8, else one through an open descriptor of it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield str(path)


def escape(character: str) -> str:
    r"""A character in ASCII: a byte that is no text as \xf1, others as Python writes them."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character in WRITTEN:
        return WRITTEN[character]
    return (
        f"\\x{ord(character):02x}"
        if ord(character) < 256
        else character.encode("ascii", "backslashreplace").decode()
    )


def escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    """The error handler: what the stream's encoding lacks, escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(escape, error.object[error.start : error.end])), error.end


codecs.register_error(ESCAPE, escape_unencodable)


def forgive() -> None:
    """Make stdout and stderr write what their encoding lacks in escapes, where they would raise."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ESCAPE)
