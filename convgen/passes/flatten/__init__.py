"""SCHEDULED nests become FLAT statements: registers, vectors, tasks; every edge resolved."""

from convgen.passes.flatten.tasks import flatten

__all__ = ["flatten"]
