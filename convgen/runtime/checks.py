"""What a certificate says: each check proves or runs one claim and tells how, at which sizes.

Exact work is done on members of the program's family with small extents (symbolic/resize), with
the oracle (symbolic/evaluate), forward-mode dual numbers on the forward formula (symbolic/duals)
and the interpreter of kernels (ir/interpret).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from convgen.errors import ConvgenError, DerivationError, ScheduleError, UserError
from convgen.ir.interpret import interpret, work
from convgen.ir.interpret.values import numpy_dtype
from convgen.ir.nodes import Kernel
from convgen.passes import pipeline
from convgen.passes.flatten.proof import check_memory
from convgen.passes.flatten.reach import survey_memory
from convgen.passes.lower import lower
from convgen.runtime.layouts import arranged
from convgen.symbolic.derive import adjoint, grad, split
from convgen.symbolic.duals import vjp
from convgen.symbolic.evaluate import Array, evaluate, is_rational
from convgen.symbolic.evaluate_scalar import Numbers, primal
from convgen.symbolic.expr import Tensor, fixed
from convgen.symbolic.program import Origin, Program
from convgen.symbolic.resize import Family
from convgen.symbolic.rewrite import one_pass
from convgen.target import Target

PRECISION = 1e-30  # of results in 50 digits, relative to the largest
_POINTS = 60_000  # elements read by one exact evaluation at a small size
_FLAT = 1 << 16  # iterations whose flat statements are interpreted
_LOOPS = 1 << 21  # iterations whose loops are interpreted
_FACTORS = re.compile(r"(split|cover|unroll)\((\w+?'?), ([\d, ]+)")


@dataclass(frozen=True)
class Check:
    """One claim. passed: None where the claim does not apply, with the reason in `how`.

    how     the method, in a sentence
    at      the sizes it was done at, one line each
    facts   numbers and findings by name
    """

    claim: str
    passed: bool | None
    how: str
    at: tuple[str, ...] = ()
    facts: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        found = asdict(self)
        found["at"] = list(self.at)
        found["facts"] = dict(self.facts or {})
        return found


def sizes_text(program: Program) -> str:
    """The shapes of a program's inputs and outputs."""
    tensors = dict.fromkeys((*program.inputs, *program.outputs))
    return f"{program.name}: " + ", ".join(
        f"{t.name}[{', '.join(map(str, t.shape))}]" for t in tensors
    )


# ---------------------------------------------------------------------------------------------
# Small members


@dataclass(frozen=True)
class Small:
    """A small forward formula of the structure of another. signed: its inputs may be negative;
    exact: its values are rational numbers then."""

    base: Program
    signed: bool
    exact: bool


def base_of(program: Program) -> Program:
    """The forward formula: what a derived program was derived from, else the program."""
    return program if program.origin is None else base_of(program.origin.program)


def derive_again(origin: Origin, program: Program) -> Program:
    """The derivation of an origin, done to another program."""
    wrt = list(origin.wrt)
    if program.origin is None and origin.program.origin is not None:
        program = derive_again(origin.program.origin, program)
    if origin.kind == "grad":
        return grad(program, wrt, flip=origin.flip)
    if origin.kind == "adjoint":
        return adjoint(program, wrt[0], flip=origin.flip)
    forward, backward = split(program, wrt, flip=origin.flip)
    return forward if origin.kind == "forward" else backward


def rebuilt(program: Program, base: Program) -> Program:
    """The program as it follows from another base."""
    return base if program.origin is None else derive_again(program.origin, base)


def piece_counts(program: Program) -> list[int]:
    """Pieces of each stage."""
    return [len(stage.pieces) for stage in program.stages]


def gradient_of(base: Program) -> Program | None:
    """The gradient to all float inputs but states; None where there is none to derive."""
    try:
        wrt = [t.name for t in base.inputs if t.dtype.is_float and t.role != "state"]
        return grad(base, wrt) if wrt and any(t.dtype.is_float for t in base.outputs) else None
    except DerivationError:
        return None


def small_of(program: Program) -> Small | None:
    """A small member with every residue class and border piece that the program and its gradient
    have; None when there is none that can be evaluated."""
    base = base_of(program)
    full = gradient_of(base)
    wanted = piece_counts(full) if full is not None else piece_counts(base)
    family = Family(base)
    for candidate in _candidates(family):
        gradient = gradient_of(candidate)
        found = piece_counts(gradient) if gradient is not None else piece_counts(candidate)
        if found != wanted or cost(gradient or candidate) > 20 * _POINTS:
            continue
        signed, exact = nature(candidate)
        return Small(candidate, signed, exact)
    return None


def _candidates(family: Family) -> Iterator[Program]:
    for taps in (3, 1 << 30, 2):
        for least in (2, 3, 4, 5, 7):
            found = family.smaller(least, taps, distinct=False)
            if found is not None:
                yield found
    yield replace(family.program, origin=None)


def cost(program: Program) -> int:
    """Points of all sums of a program."""
    total = 0
    for stage in program.stages:
        for piece in stage.pieces:
            outer = math.prod(_extents(piece.domain))
            inner = sum(math.prod(_extents(r.domain)) for r in piece.reduces)
            total += outer * max(inner, 1)
    return total


def _extents(domain: Any) -> list[int]:
    return [max(0, fixed(r.hi) - r.lo) for r in domain.ranges]


def nature(program: Program) -> tuple[bool, bool]:
    """(signed, exact): whether any sign may be given, and whether results are rational then."""
    for signed in (True, False):
        with np.errstate(all="ignore"):
            try:
                found = evaluate(program, plain_inputs(program, signed), temporaries=True)
            except (ArithmeticError, ValueError):
                continue
        values = [primal(v) for array in found.values() for v in array.data]
        # ±inf is the maximum of nothing; nan says that the numbers given were no good.
        if all(v == v and not isinstance(v, complex) for v in values):
            return signed, is_rational(program)
    return False, is_rational(program)


def plain_inputs(program: Program, signed: bool, seed: int = 0) -> dict[str, Array]:
    """Small rationals (integers where any sign is allowed) for every input."""
    chance = random.Random(seed)
    return {t.name: _plain(t, signed, chance) for t in program.inputs}


def _plain(tensor: Tensor, signed: bool, chance: random.Random) -> Array:
    shape = tuple(fixed(e) for e in tensor.shape)
    count = math.prod(shape)
    if not tensor.dtype.is_float:
        return Array(shape, [chance.randrange(2) for _ in range(count)])
    if signed:
        return Array(shape, [chance.randrange(-4, 5) for _ in range(count)])
    return Array(shape, [Fraction(chance.randrange(4, 17), 8) for _ in range(count)])


# ---------------------------------------------------------------------------------------------
# Proofs


def check_writes(program: Program) -> Check:
    """Every element of every tensor is written exactly once."""
    how = "integer proof from the domains at full size: pieces are disjoint and cover each tensor"
    try:
        proof = program.check()
    except UserError as error:
        return Check("writes", False, how, (sizes_text(program),), {"error": str(error)})
    facts = {"proved": [str(c) for c in proof.covers]}
    return Check("writes", True, how, (sizes_text(program),), facts)


def check_bounds(program: Program, stages: pipeline.Built) -> Check:
    """No access leaves its tensor, in the formula and in the statements that become code."""
    how = (
        "from the domains at full size: the range of every index of the formula, inside its extent "
        "or served by a boundary; the range of every load and store of the statements that become "
        "code, under the loops, conditions and masks around it, inside its memory"
    )
    at = (sizes_text(program),)
    try:
        reaches = program.check().reaches
        check_memory(stages.flat)
    except ConvgenError as error:
        return Check("bounds", False, how, at, {"error": str(error)})
    statements = survey_memory(stages.flat)
    facts: dict[str, Any] = {
        "indices": len(reaches),
        "inside": sum(r.inside for r in reaches),
        "served_by_boundary": [str(r) for r in reaches if not r.inside],
        "statements_proved": statements.proved,
    }
    if statements.unproved:
        facts["statements_not_followed"] = list(statements.unproved)
        how += (
            ". Some rest on arithmetic that this proof does not follow; they are run at the small "
            "size of the loops check, where leaving memory is an error"
        )
    return Check("bounds", None if statements.unproved else True, how, at, facts)


# ---------------------------------------------------------------------------------------------
# Formula and gradient


def check_gradient(program: Program, small: Small | None) -> Check:
    """The derived gradient equals the derivative of the forward formula by dual numbers."""
    base, claim = base_of(program), "gradient"
    if any(stage.backward is not None for stage in base.stages):
        return Check(claim, None, "the gradient is declared, not derived")
    full = gradient_of(base)
    if full is None:
        return Check(claim, None, "there is nothing to derive: no float inputs, or no derivative")
    facts: dict[str, Any] = {}
    if program.origin is not None:
        facts["derived_from"] = str(base)
        if not _is_derived(program):
            how = "the formula is not the one that derivation gives"
            return Check(claim, False, how, (sizes_text(program),), facts)
    if small is None:
        how = "no member of the program's family is small enough to be evaluated exactly"
        return Check(claim, None, how, (sizes_text(base),), facts)
    numbers: Numbers = "exact" if small.exact else "mp"
    how = (
        "against forward-mode dual numbers on the forward formula, on a member that has every "
        "residue class and border piece of the full size, "
        + ("in exact rational arithmetic" if small.exact else "in 50 digits, to 1e-30")
    )
    facts["arithmetic"] = "exact" if small.exact else "50 digits"
    facts["pieces"] = sum(piece_counts(full))
    made = program if program.origin is not None else None
    try:
        worst = _gradient_difference(made, small, numbers)
    except DerivationError as error:
        return Check(claim, None, f"no derivative: {error}", (sizes_text(base),), facts)
    facts["difference"] = float(worst)
    passed = worst == 0 if small.exact else worst <= PRECISION
    return Check(claim, bool(passed), how, (sizes_text(small.base),), facts)


def _is_derived(program: Program) -> bool:
    origin = program.origin
    assert origin is not None
    again = derive_again(origin, origin.program)
    return str(again) == str(program)


def _gradient_difference(program: Program | None, small: Small, numbers: Numbers) -> Any:
    """The largest difference, relative to the largest element in 50 digits."""
    base = small.base
    wrt = [t.name for t in base.inputs if t.dtype.is_float and t.role != "state"]
    first = base if program is None else program
    while first.origin is not None and first.origin.program.origin is not None:
        first = first.origin.program
    kind = first.origin.kind if first.origin is not None else "grad"
    if first.origin is not None:
        wrt = list(first.origin.wrt)
    given = plain_inputs(base, small.signed, 1)
    outs = [t for t in base.outputs if t.dtype.is_float]
    chance = random.Random(2)
    cotangents = {t.name: _plain(t, True, chance) for t in outs}
    want = vjp(base, given, cotangents, wrt, numbers=numbers)
    got = _derived_values(base, kind, wrt, given, cotangents, numbers)
    worst: Any = 0
    for name in wrt:
        scale = max([abs(v) for v in want[name].data if v == v], default=0) or 1
        for a, b in zip(got["d" + name], want[name].data, strict=True):
            difference = abs(a - b) if a == a and b == b and a != b else int((a != a) != (b != b))
            worst = max(worst, difference if numbers == "exact" else difference / scale)
    return worst


def _derived_values(
    base: Program,
    kind: str,
    wrt: Sequence[str],
    given: Mapping[str, Array],
    cotangents: Mapping[str, Array],
    numbers: Numbers,
) -> dict[str, list[Any]]:
    known: dict[str, Array] = dict(given)
    known.update({"d" + name: value for name, value in cotangents.items()})
    if kind in ("forward", "backward"):
        forward, backward = split(base, list(wrt))
        known.update(evaluate(forward, given, numbers=numbers))
    else:
        backward = grad(base, list(wrt))
    wanted = {t.name: known[t.name] for t in backward.inputs}
    found = evaluate(backward, wanted, numbers=numbers)
    return {"d" + n: found[t.name].data for n, t in zip(wrt, backward.outputs, strict=True)}


# ---------------------------------------------------------------------------------------------
# Loops


def check_loops(
    program: Program,
    small: Small | None,
    schedule: str,
    target: Target,
    own: bool,
    *,
    layouts: Mapping[str, str] | None = None,
) -> Check:
    """Scheduled loops and flat statements compute what the naive loops compute."""
    claim = "loops"
    if small is None:
        how = "no member of the program's family is small enough to be interpreted"
        return Check(claim, None, how)
    at: list[str] = []
    facts: dict[str, Any] = {}
    same = _same_schedule(program, small, schedule, target, layouts or {})
    worst = 0.0
    if same is not None:
        member, found = same
        at.append(f"{sizes_text(member)}; loops, by the kernel's own schedule")
        facts["own_schedule"] = found
        worst = max(worst, found)
    member = rebuilt(program, small.base)
    naive = lower(member)
    laid = arranged(_loops(program, member), layouts or {})
    stages = _staged(laid, schedule if own else None, target) or _staged(laid, None, target)
    given = kernel_inputs(naive, small.signed)
    if stages is None or work(naive) > _LOOPS:
        how = "the smallest member is too large to be interpreted"
        return Check(claim, worst <= 1e-5 if same else None, how, tuple(at), facts)
    forms = [stages.scheduled] + [stages.flat] * (work(naive) <= _FLAT)
    reference = interpret(naive, given)
    for form in forms:
        buffers = {b.name for b in form.buffers}
        got = interpret(form, {n: v for n, v in given.items() if n in buffers}, seed=1)
        found = largest_difference(reference, got)
        facts[form.form.name.lower()] = found
        worst = max(worst, found)
    at.append(f"{sizes_text(member)}; {', '.join(f.form.name.lower() for f in forms)}")
    how = (
        "interpreted beside the naive loops on the same integers, element by element; floats of "
        "another order of sums may differ by 1e-5 of the largest element"
    )
    facts["schedule_at_small_size"] = str(stages.schedule)
    return Check(claim, worst <= 1e-5, how, tuple(at), facts)


def _same_schedule(
    program: Program, small: Small, schedule: str, target: Target, layouts: Mapping[str, str]
) -> tuple[Program, float] | None:
    """The smallest member found that takes the kernel's own schedule, and the difference."""
    family = Family(base_of(program))
    for values in _scheduled_values(family, schedule):
        base = family.member(values)
        if base is None:
            continue
        member = rebuilt(program, base)
        naive = lower(member)
        laid = arranged(_loops(program, member), layouts)
        stages = _staged(laid, schedule, target) if work(naive) <= _LOOPS else None
        if stages is not None:
            given = kernel_inputs(naive, small.signed)
            buffers = {b.name for b in stages.scheduled.buffers}
            known = {n: v for n, v in given.items() if n in buffers}
            got = interpret(stages.scheduled, known)
            return member, largest_difference(interpret(naive, given), got)
    return None


def _loops(program: Program, member: Program) -> Kernel:
    """The loops of a member before a schedule, rewritten where those of the program are
    (`build.lowered`): the program's schedule names them."""
    rewritten = one_pass(program) is not program
    return lower(one_pass(member, large=1) if rewritten else member)


def _scheduled_values(family: Family, schedule: str) -> Iterator[list[int]]:
    """Extents at which a schedule may be legal: axes with factors at what the factors ask for, the
    others small; then every axis the schedule names as it is."""
    named: dict[str, int] = {}
    for word, axis, numbers in _FACTORS.findall(schedule):
        factors = [int(n) for n in re.findall(r"\d+", numbers)]
        axis = re.sub(r"(_in|_out)+$", "", axis)
        wanted = sum(factors) if word == "cover" else math.prod(factors)
        named[axis] = max(1, named.get(axis, 1)) * wanted
    yield [f.value if f.kind == "tap" else min(f.value, 3) for f in family.free]
    for times in (1, 2):
        yield [
            min(f.value, named.get(f.name, 3) * times if f.name in named else 3)
            if f.kind != "tap"
            else f.value
            for f in family.free
        ]
    words = set(re.findall(r"[A-Za-z]\w*'?", schedule))
    kept = {re.sub(r"(_in|_out)+$", "", w) for w in words} & set(named)
    yield [f.value if f.kind == "tap" or f.name in kept else min(f.value, 2) for f in family.free]
    vectors = set(re.findall(r"vectorize\((\w+?'?)(?:_in|_out)*\)", schedule))
    yield [
        f.value if f.kind == "tap" or f.name in kept | vectors else min(f.value, 2)
        for f in family.free
    ]


def _staged(naive: Kernel, schedule: str | None, target: Target) -> pipeline.Built | None:
    try:
        return pipeline.build_stages(naive, schedule, target)
    except ScheduleError:
        return None


def kernel_inputs(kernel: Kernel, signed: bool, seed: int = 0) -> dict[str, Any]:
    """Small numbers for the inputs of a kernel."""
    chance = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for buffer in kernel.buffers:
        if buffer.role == "input":
            if not buffer.dtype.is_float:
                values = chance.integers(0, 2, buffer.shape)
            elif signed:
                values = chance.integers(-3, 4, buffer.shape)
            else:
                values = chance.integers(4, 17, buffer.shape) / 8
            made[buffer.name] = np.asarray(values).astype(numpy_dtype(buffer.dtype))
    return made


def largest_difference(want: Mapping[str, Any], got: Mapping[str, Any]) -> float:
    """The largest difference over the outputs, relative to the largest element of each; inf where
    one is no number and the other is, or integers differ."""
    worst = 0.0
    for name, array in want.items():
        other = got.get(name)
        if other is None or other.shape != array.shape:
            return math.inf
        worst = max(worst, difference(array, other))
    return worst


def difference(want: Any, got: Any) -> float:
    """As `largest_difference`, for one array."""
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(want, got) else math.inf
    a, b = want.astype(np.float64), got.astype(np.float64)
    odd = ~np.isfinite(a) | ~np.isfinite(b)
    if not np.array_equal(a[odd], b[odd], equal_nan=True):
        return math.inf
    a, b = a[~odd], b[~odd]
    if not a.size:
        return 0.0
    far = float(np.abs(a - b).max())
    scale = float(np.abs(a).max())
    return far / scale if scale else (math.inf if far else 0.0)
