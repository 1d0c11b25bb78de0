"""What the options of operators may be."""

from collections.abc import Mapping
from dataclasses import dataclass

from synaptree.format.errors import FormatError

__all__ = ["KINDS", "Option", "Options", "Value"]

Value = None | bool | int | float | str | tuple[int, ...] | tuple[float, ...]
Options = Mapping[str, Value]
KINDS = ("bool", "int", "float", "number", "ints", "floats", "text")


@dataclass(frozen=True)
class Option:
    """What values an option takes.

    Attributes:
        kind: "bool", "int", "float" (an int is taken as a float), "number" (an int or a float, and stays what it is),
            "ints", "floats" (several) or "text". No number is NaN.
        default: what it is where a step does not say.
        required: there is no default, a step must say.
        optional: None is a value too.
        choices: for "text", all that are known.
        least, most: of each number.
        length: for "ints" and "floats", how many there must be; any number but none if 0.
    """

    kind: str
    default: Value = None
    required: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    length: int = 0

    def checked(self, value: object) -> Value:
        """Return the value as a file gives it back: ints of kind "float" as floats, lists as tuples.

        >>> Option("ints", least=1, length=2).checked([3, 3])
        (3, 3)

        Raises:
            FormatError: it is of another kind or outside the bounds.
        """
        if value is None and self.optional:
            return None
        if self.kind == "bool" and isinstance(value, bool):
            return value
        if self.kind == "text" and isinstance(value, str) and value in self.choices:
            return value
        if self.kind in ("int", "float", "number"):
            return self._number(value)
        if self.kind in ("ints", "floats") and isinstance(value, list | tuple):
            several = tuple(self._number(each) for each in value)
            if several and len(several) == (self.length or len(several)):
                return several
        raise FormatError(f"wanted {self}, got {value!r}")

    def _number(self, value: object) -> int | float:
        whole = self.kind in ("int", "ints")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value != value:
            raise FormatError(f"wanted {self}, got {value!r}")
        if (self.least is not None and value < self.least) or (self.most is not None and value > self.most):
            raise FormatError(f"wanted {self}, got {value!r}")
        if abs(value) >= 1 << 63 and isinstance(value, int):
            raise FormatError(f"wanted a number of at most 63 bits, got {value!r}")
        return float(value) if self.kind in ("float", "floats") else value

    def __str__(self) -> str:
        several = f"{self.length} " if self.length else "some "
        said = {"text": f"one of {', '.join(self.choices)}", "ints": f"{several}ints", "floats": f"{several}floats"}
        bounds = [f"at least {self.least:g}"] if self.least is not None else []
        bounds += [f"at most {self.most:g}"] if self.most is not None else []
        return " ".join([said.get(self.kind, self.kind), *bounds, *(["or None"] if self.optional else [])])
