"""Watch what the interpreter does: any sign that something from a file was run, imported, or written."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

from monitor.read.directories import directory_readers
from monitor.read.registry import READERS, reader_class

_FORBIDDEN = {
    *("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "exec", "import"),
    *("socket.connect", "socket.bind", "ctypes.dlopen", "os.remove", "os.rename", "os.mkdir", "os.truncate"),
    *("shutil.rmtree", "marshal.loads", "code.__new__", "mmap.__new__", "fcntl.flock", "fcntl.lockf", "os.chmod"),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watching: dict[int, list[str]] = {}


def _hook(event: str, args: tuple[object, ...]) -> None:
    seen = _watching.get(get_ident())
    if seen is None:
        return
    if event in _FORBIDDEN:
        seen.append(f"{event} {args!r:.200}")
    elif event == "open" and isinstance(args[2], int) and args[2] & _WRITING:
        seen.append(f"open for writing {args!r:.200}")


sys.addaudithook(_hook)


@contextmanager
def audited() -> Iterator[list[str]]:
    """Yield the list of forbidden events that this thread causes in the block; it should stay empty.

    The readers and the codec of zip names are imported before: which of them a file calls for is not what is watched.
    """
    codecs.lookup("cp437")
    for name in READERS:
        reader_class(name)
    directory_readers()
    seen: list[str] = []
    _watching[get_ident()] = seen
    try:
        yield seen
    finally:
        del _watching[get_ident()]
