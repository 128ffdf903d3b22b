"""Checks by its opcodes alone that a pickle only describes arrays. Nothing is built, nothing is run.

A pickle is a program for a stack machine that may name any function and call it. Here the machine is followed with stand-ins for
the values: of each only its text (functions can be named by text on the stack), the function it names, or how deep it is nested.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from mrcnn_tf.weights.checkpoint_errors import UnsafeCheckpointError

MAX_NAME_LENGTH = 200
"""Of a function's module or name; longer texts are data and not kept."""
MAX_NESTING = 100
"""Tuples within tuples: hashing one that is nested without limit overflows the interpreter's own stack."""

# Python 2 and 3, protocols 2 to 5. Nothing that makes objects by class name, takes keyword arguments, uses the extension
# registry or buffers from outside is among these.
ALLOWED_OPCODES = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK"),
        *("BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"),
    )
)
PERSISTENT_ID = "BINPERSID"
"""The operation with which torch refers to data outside the pickle."""
_GETS, _PUTS = ("BINGET", "LONG_BINGET"), ("BINPUT", "LONG_BINPUT", "MEMOIZE")
_CHANGE_FIRST = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")


class _Function(NamedTuple):
    module: str
    name: str


_Item = str | int | _Function | pickletools.StackObject
"""A short text, a named function, a mark, or the nesting depth of any other value."""


def check_pickle(stream: IO[bytes], allowed: Collection[tuple[str, str]], path: Path, *, persistent_ids: bool = False) -> None:
    """Read one pickle and refuse it if it could do more than describe arrays.

    Args:
        stream: at the pickle's start, seekable; left after its end.
        allowed: (module, name) of what it may name.
        path: of the file, for messages.
        persistent_ids: whether it may refer to data outside.

    Raises:
        UnsafeCheckpointError: it uses another operation, or names anything else.
        BROKEN_FILE_ERRORS: it is no pickle, truncated, or claims to hold more bytes than the stream has.
    """
    bounded = _BoundedStream(stream)
    machine = _Machine(allowed)
    opcodes = ALLOWED_OPCODES | {PERSISTENT_ID} if persistent_ids else ALLOWED_OPCODES
    operations: Iterator[tuple[pickletools.OpcodeInfo, Any, Any]] = pickletools.genops(cast(IO[bytes], bounded))
    start = stream.tell()
    for opcode, argument, position in operations:
        if opcode.name not in opcodes:
            raise UnsafeCheckpointError(f"{path}: refused, its pickle uses the operation {opcode.name}")
        if opcode.name == "FRAME":
            bounded.check_length(argument)
        # The unpickler allocates its memo up to the index, and no pickle needs one beyond its own length.
        if opcode.name == "LONG_BINPUT" and argument > position - start:
            raise UnsafeCheckpointError(f"{path}: refused, its pickle asks for {argument} memo entries")
        fault = machine.step(opcode, argument)
        if fault:
            raise UnsafeCheckpointError(f"{path}: refused, its pickle {fault}")


class _BoundedStream:
    """Refuses to read more than there is before memory for it is taken."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        start = stream.tell()
        self._end = stream.seek(0, io.SEEK_END)
        stream.seek(start)
        self.readline, self.tell = stream.readline, stream.tell

    def read(self, count: int) -> bytes:
        self.check_length(count)
        return self._stream.read(count)

    def check_length(self, count: int) -> None:
        # Short reads cost no memory, and `tell` takes as long as they do.
        if count > io.DEFAULT_BUFFER_SIZE and count > self._end - self.tell():
            raise pickle.UnpicklingError(f"a pickle says that {count} bytes follow, there are {self._end - self.tell()}")


class _Machine:
    """Follows a pickle's stack and memo."""

    def __init__(self, allowed: Collection[tuple[str, str]]) -> None:
        self._allowed = allowed
        self._stack: list[_Item] = []
        self._memo: dict[int, _Item] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> str | None:
        """Take one operation; gives what it does that is not allowed, or None."""
        if opcode.name in _GETS:
            self._stack.append(self._memo[argument])
            return None
        if opcode.name in _PUTS:
            self._memo[len(self._memo) if opcode.name == "MEMOIZE" else argument] = self._stack[-1]
            return None
        popped = self._pop(opcode)
        result = _result(opcode, argument, popped)
        self._stack += [pickletools.markobject if after is pickletools.markobject else result for after in opcode.stack_after]
        return self._fault(opcode.name, popped, result)

    def _pop(self, opcode: pickletools.OpcodeInfo) -> list[_Item]:
        before, popped = opcode.stack_before, []
        at_mark = opcode.name == "POP" and bool(self._stack) and self._stack[-1] is pickletools.markobject
        count = len(before)
        if pickletools.markobject in before or at_mark:
            while (item := self._stack.pop()) is not pickletools.markobject:
                popped.append(item)
            count = 0 if at_mark else before.index(pickletools.markobject)
        popped += [self._stack.pop() for _ in range(count)]
        if pickletools.markobject in popped:
            raise pickle.UnpicklingError(f"a pickle's {opcode.name} finds a mark instead of a value")
        return popped[::-1]

    def _fault(self, name: str, popped: list[_Item], result: _Item) -> str | None:
        if name in ("GLOBAL", "STACK_GLOBAL"):
            if not isinstance(result, _Function):
                return "names a function by what is no text"
            if result not in self._allowed:
                return f"asks for {result.module}.{result.name}; only arrays are read"
        if name == "BUILD" and isinstance(popped[0], _Function):
            return f"changes {popped[0].module}.{popped[0].name}"
        return "is nested too deeply" if _depth(result) > MAX_NESTING else None


def _result(opcode: pickletools.OpcodeInfo, argument: Any, popped: list[_Item]) -> _Item:
    if opcode.name == "GLOBAL":
        return _Function(*argument.split(" ", 1))
    if opcode.name == "STACK_GLOBAL" and all(isinstance(item, str) for item in popped):
        return _Function(*map(str, popped))
    if isinstance(argument, str) and len(argument) <= MAX_NAME_LENGTH:
        return argument
    kept = 1 if opcode.name in _CHANGE_FIRST else 0
    inside = max(map(_depth, popped[kept:]), default=-1)
    return max([1 + inside, *map(_depth, popped[:kept])])


def _depth(item: _Item) -> int:
    return item if isinstance(item, int) else 0
