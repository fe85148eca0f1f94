"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from convgen.errors import UserError

Decorator = Callable[[Any], Any]

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON value instead.")
THREADS = click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
DTYPE = click.option("--dtype", type=click.Choice(["f32", "f64"]), default="f32", show_default=True)
PLACE = click.option(
    "--json",
    "place",
    is_flag=False,
    flag_value="-",
    type=click.Path(path_type=Path),
    help="Write one JSON value to this file; without a file, print it instead.",
)
PLOT = click.option("--plot", type=click.Path(path_type=Path), help="Write the roofline, an SVG.")


def example(text: str) -> str:
    """An epilogue that shows one call, unwrapped."""
    return f"\b\nExample:\n  {text}"


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in help in this order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


sized = together(
    click.option("--shape", "shapes", multiple=True, help="NAME=EXTENT,... of a formula's tensor."),
    click.option(
        "--input", "input_shape", help="Shape of a layer's or network's input, with batch."
    ),
)


class Names(click.ParamType):
    """Names with commas between them, of a choice where there is one.

    >>> Names(["a", "b"]).convert("a,b", None, None)
    ('a', 'b')
    """

    name = "names"

    def __init__(self, choice: Sequence[str] = ()) -> None:
        self._choice = choice

    def get_metavar(self, param: Any, ctx: Any = None) -> str:
        return f"[{'|'.join(self._choice)}],..." if self._choice else "NAME,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        found = tuple(part.strip() for part in value.split(","))
        for name in found:
            if self._choice and name not in self._choice:
                self.fail(f"{name!r} is not one of {', '.join(self._choice)}.", param, ctx)
        return found


def names(*flags: str, choice: Sequence[str] = (), help: str) -> Decorator:
    """An option of several names: commas between them, or given several times; one tuple."""

    def flat(ctx: Any, param: Any, value: Sequence[Sequence[str]]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in value for name in part if name))

    return click.option(*flags, multiple=True, type=Names(choice), callback=flat, help=help)


def check_writable(**places: Path | None) -> None:
    """Refuse files that cannot be written, before anything is measured."""
    for option, place in places.items():
        if place is None or str(place) == "-":
            continue
        where = f"--{option}"
        if not place.parent.is_dir():
            raise UserError(f"there is no folder {place.parent}", where=where)
        if place.is_dir():
            raise UserError(f"{place} is a folder", expected="a file", where=where)
        if option == "plot" and place.suffix not in (".svg", ".png"):
            raise UserError(f"picture {place.name}", expected=".svg or .png", where=where)
        fresh = not place.exists()
        try:
            with open(place, "ab"):
                pass
        except OSError as error:
            raise UserError(f"{place} cannot be written: {error.strerror}", where=where) from None
        if fresh:
            place.unlink()
