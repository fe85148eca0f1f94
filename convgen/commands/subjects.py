"""What SUBJECT on the command line means."""

from __future__ import annotations

from typing import Any

import click


def resolve(subject: str, shapes: tuple[str, ...], input_shape: str | None) -> Any:
    """The subject; says so when a file was run to find it."""
    from convgen.runtime import subject as subjects
    from convgen.zoo import NETWORKS

    found = subjects.resolve(subject, shapes=shapes, input=input_shape, zoo=NETWORKS)
    if found.ran is not None:
        click.echo(f"ran {found.ran}", err=True)
    return found


def program_of(found: Any, training: bool = False) -> Any:
    """The formula of a subject that is one, or of a lone layer; None for a network."""
    from convgen.layers.base import Layer

    if found.program is None and isinstance(found.module, Layer) and found.shape is not None:
        return found.module.program(found.shape, training=training)
    return found.program
