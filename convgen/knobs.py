"""The environment: every variable convgen reads, declared once. No other file looks at it.

>>> with override(DEBUG=2, CACHE=False):
...     DEBUG.value, CACHE.value
(2, False)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from convgen.errors import UserError

T = TypeVar("T")


class _Unset:
    """Stands where no override is in force."""


_UNSET = _Unset()


class Knob(Generic[T]):
    """One variable: CONVGEN_<name>. Its value is the innermost override, else the environment's,
    else the default. The environment is read at each use, so tests and notebooks may set it late.
    """

    def __init__(
        self, name: str, default: T, sentence: str, parse: Callable[[str], T], accepts: str
    ) -> None:
        self.name = name
        self.default = default
        self.sentence = sentence
        self.accepts = accepts
        self._parse = parse
        self._override: ContextVar[T | _Unset] = ContextVar(name, default=_UNSET)
        KNOBS[name] = cast("Knob[Any]", self)

    @property
    def variable(self) -> str:
        return f"CONVGEN_{self.name}"

    @property
    def value(self) -> T:
        """The value in force; UserError when the environment holds what it does not accept."""
        override = self._override.get()
        if not isinstance(override, _Unset):
            return override
        text = os.environ.get(self.variable, "")
        return self._read(text) if text.strip() else self.default

    @property
    def source(self) -> str:
        """Where the value comes from: override, environment or default."""
        if not isinstance(self._override.get(), _Unset):
            return "override"
        return "environment" if os.environ.get(self.variable, "").strip() else "default"

    @contextmanager
    def set(self, value: T) -> Generator[None, None, None]:
        """The value inside a with block; checked like text from the environment."""
        token = self._override.set(self._read(_spell(value)) if value is not None else value)
        try:
            yield
        finally:
            self._override.reset(token)

    def _read(self, text: str) -> T:
        try:
            return self._parse(text.strip())
        except ValueError:
            raise UserError(
                f"{self.variable} does not accept {text!r}", expected=self.accepts, got=repr(text)
            ) from None

    def __repr__(self) -> str:
        return f"{self.variable}={_spell(self.value)}"


@dataclass(frozen=True, slots=True)
class Row:
    """A knob as `convgen knobs` shows it."""

    variable: str
    value: str
    default: str
    source: str
    accepts: str
    sentence: str


KNOBS: dict[str, Knob[Any]] = {}


def _spell(value: object) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError(text)
        return number

    return parse


def _flag(text: str) -> bool:
    table = {"1": True, "true": True, "yes": True, "on": True}
    table |= {"0": False, "false": False, "no": False, "off": False}
    if text.lower() not in table:
        raise ValueError(text)
    return table[text.lower()]


def _folder(text: str) -> Path | None:
    return Path(text).expanduser()


DEBUG = Knob(
    "DEBUG",
    0,
    "Print 1 a line per kernel, 2 schedule and cost, 3 the IR after each pass that changed it, "
    "4 LLVM IR, 5 assembly.",
    _integer(0, 5),
    "0 to 5",
)
DUMP: Knob[Path | None] = Knob(
    "DUMP", None, "Write numbered stages of each kernel there, ready for diff.", _folder, "a folder"
)
VERIFY = Knob(
    "VERIFY",
    0,
    "Check 1 every stage's rules, 2 also interpret before and after each pass and name the first "
    "that changed the answer.",
    _integer(0, 2),
    "0 to 2",
)
CACHE = Knob("CACHE", True, "Keep compiled kernels on disk.", _flag, "0 or 1")
CACHE_DIR: Knob[Path | None] = Knob(
    "CACHE_DIR",
    None,
    "Where compiled kernels are kept; by default the user's cache folder.",
    _folder,
    "a folder",
)
NUM_THREADS = Knob(
    "NUM_THREADS",
    0,
    "Threads that run kernels; 0 means every core this process may use.",
    _integer(0, 1024),
    "0 to 1024",
)


@contextmanager
def override(**values: Any) -> Generator[None, None, None]:
    """Set knobs by name (without the prefix) inside a with block.

    >>> with override(DEBUG=9):
    ...     pass
    Traceback (most recent call last):
    ...
    convgen.errors.UserError: CONVGEN_DEBUG does not accept '9'; expected 0 to 5, got '9'
    """
    if not values:
        yield
        return
    name, value = next(iter(values.items()))
    if name not in KNOBS:
        raise UserError(f"there is no knob {name!r}", expected="one of " + " ".join(KNOBS))
    with KNOBS[name].set(value), override(**{k: v for k, v in values.items() if k != name}):
        yield


def rows() -> tuple[Row, ...]:
    """Every knob with its value in force, in the order of declaration."""
    return tuple(
        Row(k.variable, _spell(k.value), _spell(k.default), k.source, k.accepts, k.sentence)
        for k in KNOBS.values()
    )
