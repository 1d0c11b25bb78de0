"""Trees of plain values as bytes: None, bool, int, float, text, list, dict, and arrays that stand elsewhere."""

import struct
from collections.abc import Callable
from typing import Any

from synaptree.format.errors import FormatError
from synaptree.format.wire import Reader, varint

__all__ = ["DEPTH", "name_after", "read_name_after", "read_text", "read_tree", "text", "tree"]

DEPTH = 32  # lists and dicts within one another at most
INT_LIMIT = (1 << 63) - 1
NONE, FALSE, TRUE, INT, NEGATIVE, FLOAT, TEXT, LIST, DICT, ARRAY = range(10)  # a value's first byte


def text(value: str) -> bytes:
    """Return a text as UTF-8 behind the number of its bytes.

    Raises:
        FormatError: it holds half a surrogate pair.
    """
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"text {value!r} is no UTF-8: {error}") from error
    return varint(len(data)) + data


def read_text(reader: Reader) -> str:
    """Read a text.

    Raises:
        FormatError: it is cut or no UTF-8.
    """
    data = reader.take(reader.varint(limit=reader.left))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"text {data[:40]!r} is no UTF-8: {error}") from error


def name_after(name: str, before: str) -> bytes:
    """Return a name behind the number of letters it shares with the one before it.

    >>> name_after("fc1.bias", "fc1.weight").hex()  # 4 shared, then 4 letters
    '040462696173'
    """
    differ = (place for place, (a, b) in enumerate(zip(name, before, strict=False)) if a != b)
    shared = next(differ, min(len(name), len(before)))
    return varint(shared) + text(name[shared:])


def read_name_after(reader: Reader, before: str, limit: int) -> str:
    """Read a name of at most `limit` letters.

    Raises:
        FormatError: it is cut, no UTF-8, too long, or shares more letters than there are.
    """
    name = before[: reader.varint(limit=len(before))] + read_text(reader)
    if len(name) > limit:
        raise FormatError(f"name {name[:limit]!r}: wanted at most {limit} letters")
    return name


def tree(value: Any, array: Callable[[Any], bytes], depth: int = 0) -> bytes:
    """Return a tree as bytes.

    Args:
        value: a tuple is written as a list.
        array: writes what is no plain value, or returns b"" where nobody knows it.
        depth: lists and dicts it stands in.

    Raises:
        FormatError: a value of another kind, a key that is no text, an int of more than 63 bits, or too deep a tree.

    >>> tree({"a": [1, None]}, lambda value: b"").hex()
    '080101610702030100'
    """
    if depth > DEPTH:
        raise FormatError(f"a tree of more than {DEPTH} lists and dicts within one another")
    if value is None or isinstance(value, bool):
        return bytes([NONE if value is None else TRUE if value else FALSE])
    if isinstance(value, int):
        magnitude = value if value >= 0 else -1 - value
        if magnitude > INT_LIMIT:
            raise FormatError(f"number {value}: wanted at most 63 bits")
        return bytes([INT if value >= 0 else NEGATIVE]) + varint(magnitude)
    if isinstance(value, float):
        return bytes([FLOAT]) + struct.pack("<d", value)
    if isinstance(value, str):
        return bytes([TEXT]) + text(value)
    if isinstance(value, list | tuple):
        return bytes([LIST]) + varint(len(value)) + b"".join(tree(each, array, depth + 1) for each in value)
    if isinstance(value, dict):
        return bytes([DICT]) + varint(len(value)) + b"".join(_pair(key, value[key], array, depth) for key in value)
    written = array(value)
    if not written:
        raise FormatError(f"{type(value).__name__} in a tree: wanted None, bool, int, float, text, list, dict or array")
    return bytes([ARRAY]) + written


def _pair(key: Any, value: Any, array: Callable[[Any], bytes], depth: int) -> bytes:
    if not isinstance(key, str):
        raise FormatError(f"key {key!r} of a dict: wanted text")
    return text(key) + tree(value, array, depth + 1)


def read_tree(reader: Reader, array: Callable[[Reader], Any], depth: int = 0) -> Any:
    """Read a tree.

    Args:
        reader: stands at its first byte.
        array: reads what `tree`'s `array` wrote.
        depth: lists and dicts it stands in.

    Raises:
        FormatError: the bytes are no tree, a key stands in a dict twice, or it is too deep.
    """
    if depth > DEPTH:
        raise FormatError(f"a tree of more than {DEPTH} lists and dicts within one another")
    kind = reader.take(1)[0]
    if kind <= TRUE:
        return (None, False, True)[kind]
    if kind in (INT, NEGATIVE):
        magnitude = reader.varint(limit=INT_LIMIT)
        return magnitude if kind == INT else -1 - magnitude
    if kind == FLOAT:
        return struct.unpack("<d", reader.take(8))[0]
    if kind == TEXT:
        return read_text(reader)
    if kind == LIST:
        return [read_tree(reader, array, depth + 1) for _ in range(reader.varint(limit=reader.left))]
    if kind == DICT:
        return _read_dict(reader, array, depth)
    if kind == ARRAY:
        return array(reader)
    raise FormatError(f"unknown kind of value {kind}. Known: 0 to {ARRAY}")


def _read_dict(reader: Reader, array: Callable[[Reader], Any], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(reader.varint(limit=reader.left)):
        key = read_text(reader)
        if key in found:
            raise FormatError(f"key {key!r} stands in a dict twice")
        found[key] = read_tree(reader, array, depth + 1)
    return found
