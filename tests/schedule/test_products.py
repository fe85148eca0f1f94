"""Products with a matrix that no cache of a core holds: it is walked once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convgen.bench.cases import DENSE, Case
from convgen.ir.nodes import Kernel, LoopKind
from convgen.passes.lower import lower
from convgen.runtime import kernel as kernels
from convgen.schedule.recipes.default import default_schedule
from convgen.symbolic.parse import parse
from convgen.target import target


def scheduled(rows: int, text: str, shapes: dict[str, tuple[int, ...]], where: str) -> Kernel:
    subject = lower(parse(text, D=(rows, 300), **shapes))
    return default_schedule(subject, target(where)).apply(subject, target(where))


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3"])
@pytest.mark.parametrize("rows", [9, 16, 49])
def test_rows_are_in_the_tile_and_inside_the_columns(rows: int, where: str) -> None:
    """The loops of c, r, s are one; what moves along it comes from memory, and serves all rows."""
    text = "T[p, c, r, s] = sum(k: D[p, k] * W[k, c, r, s])"
    after = scheduled(rows, text, {"W": (300, 150, 9, 9)}, where)
    [nest] = after.nests()
    kinds = {o.name: o.kind for o in nest.loops}
    assert LoopKind.UNROLL in {kind for name, kind in kinds.items() if name.startswith("p")}
    names = [o.name for o in nest.loops]
    rest = [n for n in names if n.startswith("p") and kinds[n] is not LoopKind.UNROLL]
    assert all(names.index("c_r_s_out") < names.index(n) for n in rest)


@pytest.mark.parametrize(("megabytes", "block_by_block"), [(32, True), (96, False)])
def test_filters_beyond_a_share_of_the_third_cache_come_block_by_block(
    megabytes: int, block_by_block: bool
) -> None:
    """18 MB of 32 do not stay there while the positions go by, a block of 2 MB does."""
    machine = replace(target("x86-64-v3"), l2=1 << 20, l3=megabytes << 20)
    case = Case("wide", 1, 182, 60, 146, 13, 2, 2, dilation=3)
    subject = lower(case.program("forward", "nhwc"))
    after = default_schedule(subject, machine).apply(subject, machine)
    nest = next(n for n in after.nests() if n.reduces)
    names = [o.name for o in nest.loops]
    assert (names.index("k_out") < names.index("y")) == block_by_block


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3"])
@pytest.mark.parametrize("rows", [1, 9])
def test_what_comes_from_memory_comes_in_panels(rows: int, where: str) -> None:
    """Some rows of the matrix, a page of each, for all tiles along it; then the next rows."""
    after = scheduled(rows, "T[p, j] = sum(k: D[p, k] * W[k, j])", {"W": (300, 14905)}, where)
    [nest] = after.nests()
    names = [o.name for o in nest.loops if o.name != "p"]
    assert names[:3] == ["j_out", "k_out", "j_in_out"]
    assert nest.loop("j_in_out").extent * nest.loop("j_in_in").extent * 4 <= 4096
    assert nest.reduces[0].carried


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("columns", [4096, 4133])
def test_panels_give_the_product(rows: int, columns: int) -> None:
    """Native code, with parts of a panel left over along both; caches so small that it has some."""
    shapes = {"D": (rows, 70), "W": (70, columns)}
    program = parse("T[p, j] = sum(k: D[p, k] * W[k, j])", **shapes)
    small = replace(target("x86-64-v3"), l2=1 << 14, l3=1 << 16)
    schedule = str(default_schedule(lower(program), small))
    whole = rows == 1 and columns == 4096  # a row in parts that are tasks: walked through instead
    assert ("split(k, 5)" if whole else "split(k, 16, tail='peel')") in schedule
    chance = np.random.default_rng(2)
    d, w = (chance.integers(-4, 5, shape).astype(np.float32) for shape in shapes.values())
    np.testing.assert_array_equal(kernels.compile(program, schedule=schedule)(d, w), d @ w)


def test_of_orders_as_good_the_one_that_leaves_memory_to_others() -> None:
    """A weight matrix of 64 MB is walked once: the rows of the data, 1 MB, come from the third
    cache for each of its blocks."""
    machine = replace(target("x86-64-v3"), l2=1 << 20, l3=32 << 20)
    machine = replace(machine, cpu_model="AMD EPYC (family 25, model 17)")
    subject = lower(DENSE["fc64"].program("forward", "nc"))
    [nest] = (
        n for n in default_schedule(subject, machine).apply(subject, machine).nests() if n.reduces
    )
    names = [o.name for o in nest.loops]
    assert names.index("k_out") < names.index("n_out")
