r"""A reader of the pickles inside PyTorch files that can build containers and nothing else.

A pickle is a program for a small stack machine. This is that machine without its two dangerous parts: a
name that the program asks for stays a name (nothing is imported), and where it wants to call one, `call`
decides. Instructions outside the few that PyTorch writes are refused.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Name", "interpret"]

_MAX_PICKLE = 16 * 2**20
# Instructions, with those that build something counted 8 times. A tensor takes some 65: 15,000 tensors.
_MAX_WORK = 1_000_000
_HEAVY = "REDUCE", "BINPERSID"
_MAX_KEY = (
    2**60
)  # whole numbers below it have hashes of their own; larger ones could be made to collide

# Instructions without an argument, with a number of fixed size, and with a length before their bytes.
_BARE = {
    b"(": "MARK",
    b".": "STOP",
    b"N": "NONE",
    b"\x88": "NEWTRUE",
    b"\x89": "NEWFALSE",
    b"}": "EMPTY_DICT",
    b"]": "EMPTY_LIST",
    b")": "EMPTY_TUPLE",
    b"\x85": "TUPLE1",
    b"\x86": "TUPLE2",
    b"\x87": "TUPLE3",
    b"t": "TUPLE",
    b"a": "APPEND",
    b"e": "APPENDS",
    b"s": "SETITEM",
    b"u": "SETITEMS",
    b"R": "REDUCE",
    b"b": "BUILD",
    b"Q": "BINPERSID",
    b"\x93": "STACK_GLOBAL",
    b"\x94": "MEMOIZE",
}
_NUMBERS = {
    b"\x80": ("PROTO", "<B"),
    b"\x95": ("FRAME", "<Q"),
    b"K": ("NUMBER", "<B"),
    b"M": ("NUMBER", "<H"),
    b"J": ("NUMBER", "<i"),
    b"G": ("NUMBER", ">d"),
    b"q": ("PUT", "<B"),
    b"r": ("PUT", "<I"),
    b"h": ("GET", "<B"),
    b"j": ("GET", "<I"),
}
_SIZED = {
    b"\x8a": ("LONG", "<B"),
    b"\x8c": ("TEXT", "<B"),
    b"X": ("TEXT", "<I"),
    b"\x8d": ("TEXT", "<Q"),
}


class Name(NamedTuple):
    """A name the pickle asked for, never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module[:60]}.{self.name[:60]}"


class _Mark:
    """Where a run of items on the stack begins."""


def interpret(data: bytes, call: Callable[[Name, tuple], Any], load: Callable[[tuple], Any]) -> Any:
    """The object that a pickle describes.

    Args:
        data: The pickle.
        call: `call(name, arguments)` stands for calling what has that name; it refuses by `ValueError`.
        load: `load(identifier)` gives an object that is stored outside the pickle.

    Raises:
        ValueError: If the pickle is damaged or asks for more than containers, numbers and strings.
    """
    if len(data) > _MAX_PICKLE:
        raise ValueError(f"a pickle of {len(data)} bytes, where at most {_MAX_PICKLE} are read")
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    work = 0
    try:
        for opcode, argument in _instructions(data):
            work += 8 if opcode in _HEAVY else 1
            if work > _MAX_WORK:
                raise ValueError(f"a pickle of more than {_MAX_WORK} instructions")
            if opcode == "STOP":
                (result,) = stack
                return result
            _step(opcode, argument, stack, memo, call, load)
    except (IndexError, KeyError) as error:  # an empty stack, or a memo that nothing was put into
        raise ValueError(f"a damaged pickle ({type(error).__name__})") from error
    raise ValueError("a pickle without an end")


def _instructions(data: bytes):
    """Names and arguments of the instructions, one after another."""
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        if size > len(data) - at:
            raise ValueError("a pickle that ends too early")
        at += size
        return data[at - size : at]

    def number(form: str):
        return struct.unpack(form, take(struct.calcsize(form)))[0]

    while at < len(data):
        code = take(1)
        if code in _BARE:
            yield _BARE[code], None
        elif code in _NUMBERS:
            name, form = _NUMBERS[code]
            yield name, number(form)
        elif code in _SIZED:
            name, form = _SIZED[code]
            raw = take(number(form))
            if name == "LONG":
                yield name, int.from_bytes(raw, "little", signed=True)
            else:
                yield name, raw.decode()
        elif code == b"c":
            end = data.index(b"\n", data.index(b"\n", at) + 1) + 1
            module, name = take(end - at).decode().splitlines()
            yield "GLOBAL", Name(module, name)
        else:
            raise ValueError(f"the pickle instruction {code!r}, which no file of tensors needs")


def _step(opcode: str, argument, stack: list, memo: dict, call, load):
    match opcode:
        case "PROTO" | "FRAME":
            pass
        case "MARK":
            stack.append(_Mark)
        case "NONE":
            stack.append(None)
        case "NEWTRUE" | "NEWFALSE":
            stack.append(opcode == "NEWTRUE")
        case "NUMBER" | "LONG" | "TEXT" | "GLOBAL":
            stack.append(argument)
        case "EMPTY_DICT":
            stack.append({})
        case "EMPTY_LIST":
            stack.append([])
        case "EMPTY_TUPLE":
            stack.append(())
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            items = [stack.pop() for _ in range(int(opcode[-1]))]
            stack.append(tuple(reversed(items)))
        case "TUPLE":
            stack.append(tuple(_pop_run(stack)))
        case "PUT":
            memo[argument] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "GET":
            stack.append(memo[argument])
        case "APPEND":
            item = stack.pop()
            _expect(stack[-1], list).append(item)
        case "APPENDS":
            items = _pop_run(stack)
            _expect(stack[-1], list).extend(items)
        case "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key, value])
        case "SETITEMS":
            items = _pop_run(stack)
            _set_items(stack[-1], items)
        case "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(Name(_expect(module, str), _expect(name, str)))
        case "BINPERSID":
            stack.append(load(_expect(stack.pop(), tuple)))
        case "REDUCE":
            arguments, name = _expect(stack.pop(), tuple), _expect(stack.pop(), Name)
            stack.append(call(name, arguments))
        case "BUILD":
            attributes = _expect(stack.pop(), dict)
            if attributes.keys() - {"_metadata"}:  # versions of layers, of no use to us
                raise ValueError(f"attributes {list(attributes)!r:.60}, which are not understood")
            _expect(stack[-1], dict)


def _expect(value, kind: type):
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} where a {kind.__name__} is needed")
    return value


def _pop_run(stack: list) -> list:
    start = len(stack) - 1
    while stack[start] is not _Mark:
        start -= 1
        if start < 0:
            raise ValueError("a run of items without a beginning")
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _is_key(key) -> bool:
    return type(key) is str or (type(key) is int and abs(key) < _MAX_KEY)


def _set_items(target, items: list):
    keys, values = items[::2], items[1::2]
    if len(keys) != len(values) or not all(map(_is_key, keys)):
        raise ValueError("a dict whose keys are not strings or small integers")
    _expect(target, dict).update(zip(keys, values, strict=True))
