"""The intermediate representation: kernels as loop nests, then as statements.

A `Kernel` is a list of phases over buffers. The body of a phase has one of three forms:

NEST       a `Nest` as lowered: one loop for each axis, in the order of the formula
SCHEDULED  the same `Nest` after directives: loops split, reordered, marked; buffers packed
FLAT       a `Stmt` tree over registers and vectors, ready for a backend

Integers in indices are `Affine` over loop names. Everything is an immutable value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

from convgen.affine import Affine, Constraint
from convgen.types import DType, i64

# ---------------------------------------------------------------------------------------------
# Expressions. Every expression has a dtype and a number of lanes (1 in nests).

# name -> (arity, what it computes). Comparisons and logic give bool; the others their `dtype`.
OPS: dict[str, tuple[int, str]] = {
    "add": (2, "a + b; integers wrap"),
    "sub": (2, "a - b; integers wrap"),
    "mul": (2, "a * b; integers wrap"),
    "div": (2, "a / b, floats only"),
    "fma": (3, "a * b + c, rounded once where the target has FMA (legalized otherwise)"),
    "neg": (1, "-a"),
    "abs": (1, "magnitude"),
    "max": (2, "larger; NaN if either is NaN"),
    "min": (2, "smaller; NaN if either is NaN"),
    "floordiv": (2, "integers, rounds down"),
    "mod": (2, "integers, sign of the divisor"),
    "sqrt": (1, "square root, correctly rounded; NaN below 0"),
    "floor": (1, "largest integer not above, as a float"),
    "eq": (2, "a == b"),
    "lt": (2, "a < b; false with NaN"),
    "le": (2, "a <= b; false with NaN"),
    "and": (2, "logical on bool, bitwise on integers"),
    "or": (2, "logical on bool, bitwise on integers"),
    "xor": (2, "logical on bool, bitwise on integers"),
    "not": (1, "logical on bool, bitwise on integers"),
    "shl": (2, "shift left, integers"),
    "shr": (2, "shift right, logical for unsigned, arithmetic for signed"),
    "is_nan": (1, "true where a is NaN"),
    "select": (3, "b where the bool a holds, else c; the other side is not observed"),
    "cast": (1, "a converted to dtype; floats to integers round toward zero"),
    "bitcast": (1, "the same bits as dtype of the same width"),
    "exp": (1, "e**a"),
    "log": (1, "natural logarithm"),
    "tanh": (1, "hyperbolic tangent"),
    "sigmoid": (1, "1 / (1 + exp(-a))"),
    "erf": (1, "error function"),
    "pow": (2, "a ** b; NaN for a < 0 unless b is an integer"),
    "uniform": (2, "Philox4x32-10 number in [0, 1) from (u64 seed, i64 index), see the language"),
}


@dataclass(frozen=True, slots=True)
class Const:
    """A number of the given dtype (inf, -inf and nan allowed for floats), the same in all lanes."""

    value: int | float
    dtype: DType
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Index:
    """An integer expression of loop variables (i64). With lanes > 1: `value` + lane*`stride`."""

    value: Affine
    stride: int = 0
    lanes: int = 1

    @property
    def dtype(self) -> DType:
        return i64


@dataclass(frozen=True, slots=True)
class Edge:
    """How a Load treats one dimension outside 0 <= i < extent: kind is zero, constant (reads
    `value`), omit (only inside a reduce: the element is left out), reflect, replicate, circular; or
    halo: the halo of a packed buffer holds 0 there, which is read or, as it adds nothing, not."""

    kind: Literal["zero", "constant", "omit", "reflect", "replicate", "circular", "halo"]
    value: Expr | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Nests only: the element of `buffer` at logical `index`. `edges[d]` None: proved in bounds."""

    buffer: str
    index: tuple[Affine, ...]
    edges: tuple[Edge | None, ...]
    dtype: DType
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Param:
    """A placeholder in a Combiner: v the element, p its position, a0.. and b0.. states."""

    name: str
    dtype: DType
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Reduced:
    """Nests only, in store values: result `item` of reduce number `reduce`."""

    reduce: int
    item: int
    dtype: DType
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Op:
    """An operation of OPS; all arguments have the same lanes."""

    name: str
    args: tuple[Expr, ...]
    dtype: DType
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Register:
    """FLAT only: the current value of a register (see Set), a scalar or a whole vector."""

    name: str
    dtype: DType
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class VectorLoad:
    """FLAT only: lanes elements of `buffer` at element offset + lane*stride (stride 0: broadcast).
    Lanes from `valid` on are not read and are 0. Integer `offset` is a scalar: an Index or integer
    Ops. With `mask` (bool, as many lanes; never when lanes is 1) lanes where it is false are not
    read and are 0."""

    buffer: str
    offset: Expr
    stride: int
    dtype: DType
    lanes: int
    valid: int
    mask: Expr | None = None


@dataclass(frozen=True, slots=True)
class Gather:
    """FLAT only: in each lane the element of `buffer` at that lane of `offset` (i64, a vector).
    Lanes from `valid` on, and lanes where `mask` (bool, as many lanes) is false, are not read and
    are 0; their offsets may be anything."""

    buffer: str
    offset: Expr
    dtype: DType
    lanes: int
    valid: int
    mask: Expr | None = None


@dataclass(frozen=True, slots=True)
class Broadcast:
    """FLAT only: a scalar in all lanes."""

    value: Expr
    lanes: int

    @property
    def dtype(self) -> DType:
        return self.value.dtype


@dataclass(frozen=True, slots=True)
class Lanes:
    """FLAT only: the lanes of a vector that `picked` names, in that order; one is a scalar."""

    value: Expr
    picked: tuple[int, ...]

    @property
    def dtype(self) -> DType:
        return self.value.dtype

    @property
    def lanes(self) -> int:
        return len(self.picked)


Expr: TypeAlias = "Const | Index | Load | Param | Reduced | Op | Register | _VectorExpr"
_VectorExpr: TypeAlias = "VectorLoad | Gather | Broadcast | Lanes"


# ---------------------------------------------------------------------------------------------
# Buffers


@dataclass(frozen=True, slots=True)
class Layout:
    """How the logical dimensions of a buffer lie in memory.

    `order` lists the dimensions outermost first; `blocks` (dimension, size) are inner blocks that
    follow, outermost first: NCHW16c of a 4-d tensor is order (0, 1, 2, 3), blocks ((1, 16),).
    `halo[d]` elements lie before and after dimension d and are addressed by index -low .. ; a
    blocked extent is padded up to its block. Padding and halo hold what the packing phase stores.
    """

    order: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...] = ()
    halo: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def rowmajor(rank: int) -> Layout:
        return Layout(tuple(range(rank)))


@dataclass(frozen=True, slots=True)
class Buffer:
    """An array a kernel touches.

    role    input, output: the caller's, in argument order; temporary: workspace shared by all
            workers; packed: written by a packing phase; scratch: private to a worker;
            constant: `values` (row-major) are part of the kernel
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    layout: Layout
    role: Literal["input", "output", "temporary", "packed", "scratch", "constant"]
    values: tuple[float, ...] = ()


# ---------------------------------------------------------------------------------------------
# Nests (forms NEST and SCHEDULED)


class LoopKind(Enum):
    """How a loop is run. VECTOR: all iterations at once, in registers of the target's width."""

    SERIAL = "serial"
    PARALLEL = "parallel"
    UNROLL = "unroll"
    VECTOR = "vector"


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of a covered axis: iterations i < count at start + size*i + inner, inner < size."""

    start: int
    count: int
    size: int


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop of a nest, variable `name` from 0 to extent - 1.

    `segments` (non-empty only on the outer loop of a cover or peel): the loop runs its segments one
    after another; while it is in one, the loop named `inner` has that segment's size as extent and
    the variable `base` (named ``<axis>_base``) is start + size*i. Else extent iterations.
    `steps` > 1 on a SERIAL loop: the body is repeated that many times per jump (partial unrolling).
    `reduce` None: an output loop; else the number of the reduce it belongs to.
    """

    name: str
    extent: int
    kind: LoopKind = LoopKind.SERIAL
    reduce: int | None = None
    segments: tuple[Segment, ...] = ()
    inner: str = ""
    base: str = ""
    steps: int = 1


@dataclass(frozen=True, slots=True)
class Combiner:
    """A reduction in IR terms. lift over v, p; combine over a_i, b_i; project over a_i. If given,
    step: how an element enters a state, over a_i, v; join: joins states of any order."""

    name: str
    dtypes: tuple[DType, ...]
    lift: tuple[Expr, ...]
    combine: tuple[Expr, ...]
    identity: tuple[Const, ...]
    project: tuple[Expr, ...]
    associative: bool = True
    commutative: bool = True
    step: tuple[Expr, ...] = ()
    join: tuple[Expr, ...] = ()

    @property
    def in_any_order(self) -> bool:
        """True where states join whatever the order of their elements."""
        return self.associative and (self.commutative or bool(self.join))


@dataclass(frozen=True, slots=True)
class ReduceNode:
    """One reduce of a nest: combine lift(body) over the nest's loops with this reduce number, where
    all guards hold. `position` is the row-major position in the reduced ranges.
    `carried`: the states of the tile are held in registers through the reduce loops.
    `follows`: the buffer in whose order the points of the tile and of the innermost unrolled reduce
    loops run; each state still meets its elements in the order of the loops.
    `factored`: names of reduce loops whose iterations keep states of their own, joined at the end
    in loop order (rfactor). `beside`: an earlier reduce in whose loops this one runs, together
    with it point by point; it has no loops of its own and the same `factored`."""

    combiner: Combiner
    body: Expr
    guards: tuple[Constraint, ...]
    position: Affine
    carried: bool = False
    follows: str = ""
    factored: tuple[str, ...] = ()
    beside: int | None = None


@dataclass(frozen=True, slots=True)
class StoreNode:
    """buffer[index] = value, converted to the buffer's dtype."""

    buffer: str
    index: tuple[Affine, ...]
    value: Expr


@dataclass(frozen=True, slots=True)
class Attached:
    """A producer computed inside loop `at` of the consumer (compute_at), into scratch `buffer`,
    once per iteration of `at`, before what that loop contains."""

    at: str
    nest: Nest
    buffer: str


@dataclass(frozen=True, slots=True)
class Nest:
    """For every output point that satisfies `guards`: run the reduces, then the stores.

    `loops` from the outside in. Output loops before the first reduce loop are the outer loops; all
    later output loops form the *tile*. For each reduce in turn its loops and the tile's run in
    the order of `loops` (loops of other reduces left out); then the tile's loops run the stores.
    `axes` gives every axis of the formula in terms of loop variables (and `base` variables);
    indices, guards and bodies are written over axes.
    """

    name: str
    loops: tuple[Loop, ...]
    axes: tuple[tuple[str, Affine], ...]
    ranges: tuple[tuple[str, int, int], ...]
    guards: tuple[Constraint, ...]
    reduces: tuple[ReduceNode, ...]
    stores: tuple[StoreNode, ...]
    attached: tuple[Attached, ...] = ()

    def loop(self, name: str) -> Loop:
        """The loop of that name; KeyError if there is none."""
        for loop in self.loops:
            if loop.name == name:
                return loop
        raise KeyError(name)

    def leader(self, number: int) -> int:
        """The reduce in whose loops that reduce runs: itself or the one it is beside."""
        beside = self.reduces[number].beside
        return number if beside is None else beside


# ---------------------------------------------------------------------------------------------
# Statements (form FLAT)


@dataclass(frozen=True, slots=True)
class Block:
    """Statements one after another."""

    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class For:
    """for var in range(begin, end, step): body. begin and end are evaluated once; registers set in
    the body and defined before the loop are carried from one iteration to the next and out."""

    var: str
    begin: Affine
    end: Affine
    step: int
    body: Stmt


@dataclass(frozen=True, slots=True)
class If:
    """then where condition holds, else orelse. Registers set inside and before are merged."""

    condition: Expr
    then: Stmt
    orelse: Stmt | None = None


@dataclass(frozen=True, slots=True)
class Let:
    """The integer variable `var` is `value` in `body`."""

    var: str
    value: Affine
    body: Stmt


@dataclass(frozen=True, slots=True)
class Set:
    """register = value. Visible until the end of the enclosing Block, and beyond loops and
    conditionals if it was set before them."""

    register: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Store:
    """Lanes of value below `valid` go to element offset + lane*stride of buffer, only those where
    `mask` (bool, as many lanes as value; never when that is 1) is true. `offset` is a scalar."""

    buffer: str
    offset: Expr
    stride: int
    value: Expr
    valid: int
    mask: Expr | None = None


Stmt: TypeAlias = "Block | For | If | Let | Set | Store"


# ---------------------------------------------------------------------------------------------
# Kernels


class Form(Enum):
    NEST = "nest"
    SCHEDULED = "scheduled"
    FLAT = "flat"


@dataclass(frozen=True, slots=True)
class Phase:
    """A parallel range: tasks 0..extent-1 in any order on any worker, at least `grain` at a time.
    FLAT: the body runs the tasks begin..end-1, integer variables; each worker has `scratch_bytes`.
    when: "prepare" (depends on packed inputs only, can be done ahead) or "run".
    """

    name: str
    body: tuple[Nest, ...] | Block | For | If | Let | Set | Store
    extent: int = 1
    grain: int = 1
    scratch_bytes: int = 0
    when: Literal["prepare", "run"] = "run"


@dataclass(frozen=True, slots=True)
class Kernel:
    """Phases over buffers, run in order with a barrier between.

    `trace`: the directives applied, as text; `notes`: where a fast road was left, with the reason.
    """

    name: str
    buffers: tuple[Buffer, ...]
    phases: tuple[Phase, ...]
    form: Form
    trace: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def buffer(self, name: str) -> Buffer:
        """The buffer of that name; KeyError if there is none."""
        for b in self.buffers:
            if b.name == name:
                return b
        raise KeyError(name)

    def nests(self) -> Iterator[Nest]:
        """All nests of the phases, in order (NEST and SCHEDULED forms)."""
        for phase in self.phases:
            if isinstance(phase.body, tuple):
                yield from phase.body
