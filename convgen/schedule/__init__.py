"""How a kernel is run: directives, schedules with a text form, and the recipes that choose them.

>>> from convgen.schedule import parse_schedule
>>> print(parse_schedule("split(k, 32); vectorize(k_in)"))
split(k, 32); vectorize(k_in)
"""

from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.schedule import Schedule, parse_schedule

__all__ = ["Schedule", "default_schedule", "parse_schedule"]
