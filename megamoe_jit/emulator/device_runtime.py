"""What kernels call and the driver would provide: printf's formatting."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp

_MAX_STRING = 65536
_CONVERSION = re.compile(r"%([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+))?(hh|h|ll|l|j|z|t|L)?([diouxXeEfFgGaAcsp%])")
_LONG = ("l", "ll", "j", "z", "t")


def read_string(warp: Warp, address: int, lane: int) -> str:
    """Return the zero-ended text at a generic address."""
    data = bytearray()
    while len(data) < _MAX_STRING:
        view, _ = warp.machine.resolve(warp, address + len(data), "generic", 1, write=False, lane=lane)
        if not view[0]:
            break
        data.append(int(view[0]))
    return data.decode("utf-8", "replace")


class _Arguments:
    """The packed arguments of vprintf: each at its natural alignment, floats as doubles."""

    def __init__(self, warp: Warp, address: int, lane: int) -> None:
        self._warp, self._address, self._lane, self._offset = warp, address, lane, 0

    def take(self, size: int) -> bytes:
        self._offset = -(-self._offset // size) * size
        view, _ = self._warp.machine.resolve(
            self._warp, self._address + self._offset, "generic", size, write=False, align=1, lane=self._lane
        )
        self._offset += size
        return view.tobytes()

    def integer(self, size: int, *, signed: bool) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)


def format_printf(warp: Warp, format_address: int, arguments_address: int, lane: int) -> str:
    """Format as the device's printf does; the arguments are packed in a buffer of the lane."""
    arguments = _Arguments(warp, arguments_address, lane)

    def convert(found: re.Match[str]) -> str:
        flags, width, precision, length, conversion = found.groups()
        if conversion == "%":
            return "%"
        if width == "*":
            width = str(arguments.integer(4, signed=True))
        if precision == "*":
            precision = str(max(arguments.integer(4, signed=True), 0))
        spec = f"%{flags}{width or ''}" + (f".{precision}" if precision is not None else "")
        if conversion in "diouxX":
            bits = 8 if length in _LONG else 4
            value = arguments.integer(bits, signed=conversion in "di")
            if length in ("h", "hh"):
                size = 8 * (2 if length == "h" else 1)
                value &= (1 << size) - 1
                if conversion in "di" and value >> (size - 1):
                    value -= 1 << size
            return (spec + ("d" if conversion == "u" else conversion)) % value
        if conversion in "aA":
            text: str = struct.unpack("<d", arguments.take(8))[0].hex()
            return text.upper() if conversion == "A" else text
        if conversion in "eEfFgG":
            number: float = struct.unpack("<d", arguments.take(8))[0]
            return (spec + conversion) % number
        if conversion == "c":
            return (spec + "c") % chr(arguments.integer(4, signed=False) & 0xFF)
        pointer = arguments.integer(8, signed=False)
        if conversion == "s":
            return (spec + "s") % (read_string(warp, pointer, lane) if pointer else "(null)")
        return (spec + "s") % f"{pointer:#x}"

    return _CONVERSION.sub(convert, read_string(warp, format_address, lane))
