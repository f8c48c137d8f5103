"""The Python stacks of another process, read from its memory. It need not help, and cannot notice.

Used by ``stacks``. The way is that of a debugger: the symbol ``_PyRuntime``, found as the dynamic linker finds it,
leads to interpreters, threads, frames and code objects. CPython 3.13 and newer say themselves where the fields are
(``_Py_DebugOffsets``, Include/internal/pycore_debug_offsets.h); those of 3.10 to 3.12 never moved within a version and
are listed here. What is read belongs to the process and is not to be trusted: every length has a bound, every pointer
may lead nowhere, and a frame counts only if it has a code object.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass

_MOST_THREADS = 256
_MOST_FRAMES = 256
_ATTEMPTS = 5  # a thread that runs changes its frames under our eyes
#: What is read of one process at most, in pieces and in bytes: lists that it has made up may have no end.
_MOST_READS, _MOST_BYTES = 400_000, 16 << 20


class NotPython(Exception):
    """The process has no CPython in it."""


class Unreadable(Exception):
    """It has, and its stacks cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One call. ``line`` is None where the interpreter runs code that has none."""

    filename: str
    line: int | None
    function: str


@dataclass(frozen=True, slots=True)
class PythonThread:
    """A thread of an interpreter, the outermost call first. ``tid`` is the kernel's number inside, if known."""

    tid: int | None
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the fields are. ``frame`` is the way from a thread to its innermost frame, pointer by pointer."""

    interpreters: int
    next_interpreter: int
    threads: int
    next_thread: int
    native_id: int | None
    frame: tuple[int, ...]
    previous: int
    code: int
    instruction: int
    owner: int | None
    filename: int
    function: int
    first_line: int
    line_table: int
    bytecode: int | None  # None: the instruction is an index, and the table is that of PEP 626
    ascii_size: int
    compact_size: int
    foreign_owner: int = 255  # frames of this owner, and above, are the interpreter's own


#: Printed by the headers of each version; the same for all its releases, and for all 64-bit machines.
_LAYOUTS = {
    (3, 10): _Layout(32, 0, 8, 8, None, (24,), 24, 32, 96, None, 104, 112, 40, 120, None, 48, 72),
    (3, 11): _Layout(40, 0, 16, 8, 160, (56, 8), 48, 32, 56, 69, 112, 128, 72, 136, 184, 48, 72),
    (3, 12): _Layout(40, 0, 72, 8, 144, (56, 0), 8, 0, 56, 70, 112, 128, 68, 136, 192, 40, 56, 3),
}


def _described(table: bytes, minor: int) -> _Layout:
    """The layout that an interpreter of version 3.13 or newer describes: 64-bit numbers after the cookie."""
    words = struct.unpack_from("<200Q", table)
    # By version: where the parts for interpreters, threads, frames, code and text begin, counted in numbers.
    places = {13: (6, 19, 28, 34, 67), 14: (6, 22, 31, 39, 77)}
    if minor not in places:
        raise Unreadable(f"it is Python 3.{minor}, which is newer than this version of pytest-sandbox")
    if words[2]:
        raise Unreadable("it is a free-threaded Python")
    interpreter, thread, frame, code, text = (places[minor][number] for number in range(5))
    ascii_size = words[text + 3]
    return _Layout(
        interpreters=words[5], next_interpreter=words[interpreter + 2], threads=words[interpreter + 3],
        next_thread=words[thread + 2], native_id=words[thread + 6], frame=(words[thread + 4],),
        previous=words[frame + 1], code=words[frame + 2], instruction=words[frame + 3], owner=words[frame + 5],
        filename=words[code + 1], function=words[code + 3], line_table=words[code + 4], first_line=words[code + 5],
        bytecode=words[code + 9], ascii_size=ascii_size, compact_size=ascii_size + 16, foreign_owner=3)


class _Memory:
    """The memory of a process, by its /proc/PID/mem."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.reads = self.bytes = 0

    def count(self, size: int) -> None:
        self.reads += 1
        self.bytes += size
        if self.reads > _MOST_READS or self.bytes > _MOST_BYTES:
            raise Unreadable("its threads and frames have no end")

    def read(self, address: int, size: int) -> bytes:
        self.count(size)
        try:
            data = os.pread(self.fd, size, address)
        except (OSError, OverflowError) as error:
            raise Unreadable(f"its memory cannot be read at {address:#x}: {error}") from None
        if len(data) != size:
            raise Unreadable(f"its memory ends at {address + len(data):#x}")
        return data

    def word(self, address: int) -> int:
        value: int = struct.unpack("<Q", self.read(address, 8))[0]
        return value

    def int32(self, address: int) -> int:
        value: int = struct.unpack("<i", self.read(address, 4))[0]
        return value


# Symbols.


class _Library:
    """A mapped ELF file: its dynamic symbols, read from memory (elf(5); the GNU hash table as in ld.so)."""

    def __init__(self, memory: _Memory, base: int) -> None:
        self.memory = memory
        head = memory.read(base, 64)
        if head[:6] != b"\x7fELF\x02\x01":
            raise Unreadable("it is not a 64-bit little-endian program")
        table, = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        self.bias = base
        dynamic = None
        for number in range(min(count, 64)):
            kind, _, offset, address = struct.unpack_from("<IIQQ", memory.read(base + table + number * size, 24))
            if kind == 1 and offset == 0:  # PT_LOAD: what of the file starts at the base
                self.bias = base - address
            elif kind == 2:  # PT_DYNAMIC
                dynamic = address
        if dynamic is None:
            raise Unreadable("its interpreter is linked statically")
        self.tables: dict[int, int] = {}
        for number in range(256):
            tag, value = struct.unpack("<QQ", memory.read(self.bias + dynamic + number * 16, 16))
            if tag == 0:
                break
            # glibc puts addresses in the place of offsets, musl does not.
            self.tables[tag] = value if value > self.bias else value + self.bias

    def address(self, name: bytes) -> int | None:
        """Where ``name`` is, or None if this file does not define it."""
        symbols, strings, table = self.tables.get(6), self.tables.get(5), self.tables.get(0x6FFFFEF5)
        if symbols is None or strings is None or table is None:
            return None
        memory = self.memory
        buckets, first, bloom, _ = struct.unpack("<4I", memory.read(table, 16))
        if not buckets:
            return None
        wanted = 5381
        for byte in name:
            wanted = (wanted * 33 + byte) & 0xFFFFFFFF
        start = table + 16 + bloom * 8
        index, = struct.unpack("<I", memory.read(start + wanted % buckets * 4, 4))
        while index >= first:
            found, = struct.unpack("<I", memory.read(start + (buckets + index - first) * 4, 4))
            if found | 1 == wanted | 1:
                text, _, _, section, value = struct.unpack_from("<IBBHQ", memory.read(symbols + index * 24, 16))
                if section and memory.read(strings + text, len(name) + 1) == name + b"\0":
                    return int(value) + self.bias
            if found & 1:
                break
            index += 1
        return None


def _libraries(maps: str) -> list[tuple[int, str]]:
    """The files in which an interpreter may be: whatever is called python, and the program itself."""
    found, program = [], None
    for line in maps.splitlines():
        words = line.split(None, 5)
        if len(words) < 6 or not words[5].startswith("/") or int(words[2], 16):
            continue
        entry = int(words[0].split("-")[0], 16), words[5]
        program = program or entry
        if re.match(r"(lib)?python", words[5].rsplit("/", 1)[1]):
            found.append(entry)
    # The library before the program: a small program that loads one has no symbols of the interpreter's.
    found.sort(key=lambda entry: "/lib" not in entry[1])
    return [*found, program] if program is not None and program not in found else found


# Objects.


class _Interpreter:
    """An interpreter in another process's memory."""

    def __init__(self, memory: _Memory, maps: str) -> None:
        self.memory = memory
        for base, path in _libraries(maps):  # noqa: B007 - used after the loop
            try:
                library = _Library(memory, base)
                runtime, code = library.address(b"_PyRuntime"), library.address(b"PyCode_Type")
            except Unreadable:
                continue
            if runtime is not None and code is not None:
                break
        else:
            raise NotPython
        self.runtime, self.code_type = runtime, code
        self.layout = self._layout(library, path)

    def _layout(self, library: _Library, path: str) -> _Layout:
        head = self.memory.read(self.runtime, 24)
        if head[:8] == b"xdebugpy":
            version, = struct.unpack_from("<Q", head, 8)
            return _described(self.memory.read(self.runtime, 1600), version >> 16 & 0xFF)
        place = library.address(b"Py_Version")
        if place is not None:
            minor = self.memory.word(place) >> 16 & 0xFF
        else:
            name = re.search(r"python3\.(\d+)", path)  # 3.10 does not say it anywhere else
            minor = int(name[1]) if name else 0
        if (3, minor) not in _LAYOUTS:
            raise Unreadable(f"it is Python 3.{minor}" if minor else "its version of Python cannot be told")
        return _LAYOUTS[3, minor]

    def threads(self) -> list[PythonThread]:
        memory, layout = self.memory, self.layout
        found: list[PythonThread] = []
        interpreter, interpreters = memory.word(self.runtime + layout.interpreters), 0
        while interpreter and interpreters < 16:
            thread = memory.word(interpreter + layout.threads)
            while thread and len(found) < _MOST_THREADS:
                tid = None if layout.native_id is None else memory.word(thread + layout.native_id)
                found.append(PythonThread(tid, self._frames(thread)))
                thread = memory.word(thread + layout.next_thread)
            interpreter = memory.word(interpreter + layout.next_interpreter)
            interpreters += 1
        if not found:
            raise Unreadable("its interpreter has no thread (it starts, or ends)")
        return found[::-1]  # the kernel's way round: the first thread first

    def _frames(self, thread: int) -> tuple[Frame, ...]:
        for attempt in range(_ATTEMPTS):
            try:
                return self._walk(thread)
            except Unreadable:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError

    def _walk(self, thread: int) -> tuple[Frame, ...]:
        memory, layout = self.memory, self.layout
        frame = thread
        for offset in layout.frame:
            frame = memory.word(frame + offset)
            if not frame:
                return ()
        frames: list[Frame] = []
        while frame and len(frames) < _MOST_FRAMES:
            code = memory.word(frame + layout.code) & ~3  # 3.14 marks borrowed references in the low bits
            owner = memory.read(frame + layout.owner, 1)[0] if layout.owner is not None else 0
            if owner < layout.foreign_owner:
                if memory.word(code + 8) != self.code_type:
                    raise Unreadable("a frame without code")
                frames.append(self._frame(frame, code))
            frame = memory.word(frame + layout.previous)
        return tuple(frames[::-1])

    def _frame(self, frame: int, code: int) -> Frame:
        memory, layout = self.memory, self.layout
        first = memory.int32(code + layout.first_line)
        table = self._bytes(memory.word(code + layout.line_table))
        if layout.bytecode is None:
            line = _line_of_pairs(table, first, memory.int32(frame + layout.instruction) * 2)
        else:
            at = memory.word(frame + layout.instruction) - code - layout.bytecode
            line = _line_of_locations(table, first, at)
        return Frame(self._text(memory.word(code + layout.filename)), line,
                     self._text(memory.word(code + layout.function)))

    def _bytes(self, address: int) -> bytes:
        size = self.memory.word(address + 16)
        if size > 1 << 20:
            raise Unreadable("a table of lines that is too long")
        return self.memory.read(address + 32, size)

    def _text(self, address: int) -> str:
        length = self.memory.word(address + 16)
        state = self.memory.read(address + 32, 1)[0]
        kind, compact, ascii_only = state >> 2 & 7, state >> 5 & 1, state >> 6 & 1
        if not compact or kind not in (1, 2, 4):
            raise Unreadable("a name of an unknown kind")
        start = address + (self.layout.ascii_size if ascii_only else self.layout.compact_size)
        data = self.memory.read(start, min(length, 4096) * kind)
        return data.decode({1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}[kind], "replace")


def _line_of_pairs(table: bytes, line: int, at: int) -> int | None:
    """3.10: Objects/lnotab_notes.txt."""
    end = 0
    for distance, step in zip(table[::2], table[1::2], strict=False):
        end += distance
        if step == 128:
            if at < end:
                return None
            continue
        line += step - 256 if step > 127 else step
        if at < end:
            return line
    return None


def _line_of_locations(table: bytes, line: int, at: int) -> int | None:
    """3.11 and newer: Objects/locations.md (PEP 657)."""
    position, end = 0, 0

    def number() -> int:
        nonlocal position
        value, shift = 0, 0
        while position < len(table):
            byte = table[position]
            position += 1
            value |= (byte & 63) << shift
            shift += 6
            if not byte & 64:
                break
        return value

    while position < len(table):
        first = table[position]
        position += 1
        kind = first >> 3 & 15
        end += ((first & 7) + 1) * 2
        step: int | None = 0
        if kind == 15:
            step = None
        elif kind in (13, 14):
            value = number()
            step = -(value >> 1) if value & 1 else value >> 1
            if kind == 14:
                for _ in range(3):
                    number()
        elif kind >= 10:
            step = kind - 10
            position += 2
        else:
            position += 1
        line += step or 0
        if at < end:
            return line if step is not None else None
    return None


def python_threads(proc: int, pid: int) -> list[PythonThread]:
    """The threads of all interpreters of a process, the first one's first.

    :param proc: a descriptor of the /proc in which the process has the number ``pid``.
    :raises NotPython: when there is no CPython in it.
    :raises Unreadable: when it is not ours to read, is of a version that we do not know, or changes too fast.
    """
    try:
        # Not blocking: what is mounted there may be the sandbox's own.
        maps = os.open(f"{pid}/maps", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=proc)
        with open(maps, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(4 << 20)
        fd = os.open(f"{pid}/mem", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=proc)
    except OSError as error:
        raise Unreadable(f"{error.strerror}: its memory is not this user's to read") from None
    try:
        return _Interpreter(_Memory(fd), text).threads()
    finally:
        os.close(fd)
