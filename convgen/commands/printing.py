"""How results reach the screen and files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click


def print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Columns as wide as they need; a terminal's width is kept to."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=box.SIMPLE)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:  # files and pipes have no width to keep to
        wide = Console(width=1000).measure(table).maximum
        console = Console(width=max(console.width, wide))
    console.print(table)


def write_json(value: Any, place: Path) -> None:
    """One JSON value to a file, or printed for ``-``."""
    if str(place) == "-":
        click.echo(json.dumps(value))
        return
    place.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    click.echo(f"wrote {place}")
