"""The version of convgen, said once."""

__version__ = "0.1.0"
