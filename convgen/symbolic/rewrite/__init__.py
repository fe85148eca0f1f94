"""Program -> equivalent programs: rewrites that need a fact across stages, each with a name and a
check of its own."""

from convgen.symbolic.rewrite.across_stages import Applied, closed_form, closed_form_steps
from convgen.symbolic.rewrite.moments import one_pass, one_pass_step

__all__ = ["Applied", "closed_form", "closed_form_steps", "one_pass", "one_pass_step"]
