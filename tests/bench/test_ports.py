"""What instructions ask for, the cycles they take at least, and counting them while they run."""

import numpy as np
import pytest

from convgen.bench.executed import count_instructions
from convgen.bench.ports import CORES, core_of, cycles_of, kinds_of
from convgen.runtime.build import build_program
from convgen.symbolic import dsl
from convgen.target import target

ZEN4, ZEN5 = core_of("AMD EPYC (family 25, model 17)"), core_of("AMD EPYC (family 26, model 2)")


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        ("vfmadd231ps 32(%rax), %ymm1, %ymm2", ("multiply", "load")),
        ("vcmpunordps %zmm1, %zmm2, %k1", ("compare",)),
        ("vcmpltss %xmm4, %xmm5, %xmm6", ("compare",)),
        ("vpcmpeqd %ymm1, %ymm2, %ymm3", ("simple",)),
        ("vblendvps %ymm6, %ymm5, %ymm4, %ymm5", ("select",)),
        ("vmovaps %zmm1, %zmm2 {%k1}", ("select",)),
        ("vmovaps %zmm1, %zmm2", ()),
        ("vbroadcastss (%rsi), %ymm1", ("load",)),
        ("vextractf128 $1, %ymm4, %xmm5", ("across",)),
        ("vpackssdw %xmm5, %xmm4, %xmm2", ("across",)),
        ("vpslld $23, %ymm5, %ymm9", ("shift",)),
        ("vdivps (%rax), %ymm5, %ymm9", ("divide", "load")),
        ("vsqrtps %ymm5, %ymm9", ("root",)),
        ("vxorps %xmm5, %xmm5, %xmm5", ()),
        ("vxorps %xmm5, %xmm4, %xmm5", ("simple",)),
        ("vmovups %ymm5, 64(%rsi)", ("store",)),
        ("korw %k1, %k2, %k1", ("mask",)),
        ("vscalefps %zmm1, %zmm2, %zmm3", ("scale",)),
        ("addq $2, %rax", ()),
        ("jne .LBB0_1", ()),
    ],
)
def test_kinds(line, kinds):
    assert kinds_of("\t" + line) == kinds


def test_units_work_side_by_side_and_what_shares_one_adds_up():
    product, total, least = (
        f"\t{name} %ymm1, %ymm2, %ymm3" for name in ("vmulps", "vaddps", "vminps")
    )
    assert cycles_of({product: 80, total: 80}, ZEN4) == (40.0, "vector ports")
    assert cycles_of({total: 80, least: 80}, ZEN4) == (80.0, "adders")
    wide = {line.replace("ymm", "zmm"): n for line, n in {product: 80, total: 60}.items()}
    assert cycles_of(wide, ZEN4) == (80.0, "multipliers")  # two turns each
    assert cycles_of(wide, ZEN5) == (40.0, "multipliers")
    assert cycles_of({"\tdecq %rax": 80}, ZEN4) == (80 / 6, "issue")
    assert cycles_of({"\tvdivps %ymm1, %ymm2, %ymm3": 10, product: 40}, ZEN4) == (30, "divider")


def test_no_core_is_faster_than_the_default_one():
    """The bound of an unknown core must hold for it."""
    default = {u.name: u.rate for u in core_of("").units}
    for core in CORES.values():
        shared = [u for u in core.units if u.name in default]
        assert all(u.rate <= default[u.name] for u in shared) and len(shared) == len(default)


@pytest.mark.skipif(target("native").isa != "x86-64", reason="counters are x86-64 instructions")
def test_counting_runs_the_kernel():
    (i,) = dsl.axes("i")
    lanes = target("native").vector_bits // 32
    built = build_program(
        dsl.define("Y", [i], dsl.tensor("X", (64 * lanes,))[i] * 3, name="triple")
    )
    x = np.arange(64 * lanes, dtype=np.float32)
    y = np.zeros_like(x)
    (counts,) = count_instructions(built, {"X": x, "Y": y})
    np.testing.assert_array_equal(y, 3 * x)
    stores = sum(n for line, n in counts.items() if "store" in kinds_of(line))
    products = sum(n for line, n in counts.items() if "multiply" in kinds_of(line))
    assert stores == products == 64
