"""Templates: texts without logic in which names stand for values."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, FunctionLoader, StrictUndefined

from convgen.runtime.threads import template


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(template),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )


def render(name: str, values: Mapping[str, object]) -> str:
    """A template of templates/ with its names filled in; every name must have a value."""
    return _environment().get_template(name).render(**values)
