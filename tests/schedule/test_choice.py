"""The cheapest candidate is found without scoring all, and once for nests that are alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
from schedule_nests import buffer, kernel, load, nest, var

from convgen.bench.cases import CASES, Case
from convgen.ir.nodes import Edge, Kernel, Op
from convgen.passes.lower import lower
from convgen.schedule.cost.alike import names_of, renamed, without_names
from convgen.schedule.cost.bounds import least_cycles
from convgen.schedule.cost.copies import AHEAD, copy_cycles, cycles_ahead
from convgen.schedule.cost.reuse import LINE, PAGE, aliased, bytes_of_part, new_of_line
from convgen.schedule.cost.score import bandwidth_of
from convgen.schedule.facts import Facts, Operand, facts_of
from convgen.schedule.machine import machine_of
from convgen.schedule.recipes.choice import candidates, cheapest, score_any
from convgen.schedule.recipes.folding import whole_cycles
from convgen.schedule.tiles import Candidate
from convgen.target import target
from convgen.types import f32

SUBJECTS = [
    ("res1", "forward"),
    ("vgg1_1", "weights"),
    ("vgg1_2", "weights"),
    ("res5_3x3", "forward"),
    ("lenet2", "input"),
    ("grp", "weights"),
    ("dw3", "forward"),
]


def facts_of_case(name: str, which: str, where: str) -> Facts:
    subject = lower(CASES[name].program(which, "nhwc", f32))
    (body,) = subject.nests()
    return facts_of(body, subject, target(where))


@pytest.mark.parametrize("where", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize(("name", "which"), SUBJECTS)
def test_what_is_left_out_is_not_cheaper(name: str, which: str, where: str) -> None:
    facts, machine = facts_of_case(name, which, where), machine_of(target(where))
    found = list(candidates(facts))
    scored = [score_any(facts, c, machine) for c in found]
    for candidate, one in zip(found, scored, strict=True):
        assert least_cycles(facts, candidate, machine) <= one.cycles
    assert cheapest(facts, machine) == min(scored, key=lambda c: c.cycles)
    assert cheapest(facts, machine, 2) == sorted(scored, key=lambda c: c.cycles)[2]


def test_the_bound_is_near() -> None:
    """Most candidates of a resident product are told without their score."""
    facts, machine = facts_of_case("go3", "forward", "x86-64-v4"), machine_of(target("x86-64-v4"))
    least = cheapest(facts, machine).cycles
    bounds = [least_cycles(facts, c, machine) for c in candidates(facts)]
    assert sum(bound <= least for bound in bounds) <= len(bounds) / 2


def rows(names: str, size: int = 40, edge: Edge | None = None) -> Kernel:
    """out[i, j] = sum(k: A[i, k] * B[k, j]) in other names: i, j, k, A, B, out."""
    i, j, k, a, b, out = names
    left = load(a, var(i), var(k), edges=(None, edge))
    body = Op("mul", (left, load(b, var(k), var(j))), f32)
    return kernel(
        (
            buffer(a, (30, size)),
            buffer(b, (size, 50)),
            buffer(out, (30, 50), "output"),
        ),
        nest(out, {i: 30, j: 50}, body, {k: size}, out=out),
    )


def test_names_do_not_matter_and_all_else_does() -> None:
    machine = target("x86-64-v4")

    def facts(subject: Kernel) -> Facts:
        (body,) = subject.nests()
        return facts_of(body, subject, machine)

    one, other = facts(rows("ijkABY")), facts(rows("kxqXAM"))
    assert without_names(one) == without_names(other)
    assert hash(without_names(one)) == hash(without_names(other))
    chosen, moved = (cheapest(f, machine_of(machine)) for f in (one, other))
    assert moved == renamed(chosen, names_of(one), names_of(other)) != chosen
    mine = Candidate("j", 8, (("i", (6,)),), frozenset("B"), "k")
    theirs = Candidate("x", 8, (("k", (6,)),), frozenset("A"), "q")
    assert renamed(mine, names_of(one), names_of(other)) == theirs
    for different in (rows("ijkABY", 41), rows("ijkABY", edge=Edge("zero"))):
        assert without_names(one) != without_names(facts(different))


@pytest.mark.parametrize("where", ["x86-64-v3", "x86-64-v4"])
def test_lanes_along_a_batch_leave_out_taps_that_miss(where: str) -> None:
    """A gradient to small maps: half of the taps lie outside of the other operand for a position,
    and a vector along the batch has one position. A sum of 16 is long enough for the tests."""
    found = cheapest(facts_of_case("lenet2", "input", where), machine_of(target(where)))
    assert found.vector == "n" and ("c", (6,)) in found.tile and found.packs == {"dY"}


def test_lines_that_come_again_count_in_part() -> None:
    """W[k, c, r, s] along k takes an element of each line; s finds the lines where it left them, as
    long as those between fit the first cache and do not share its sets."""
    facts = facts_of_case("lenet2", "input", "x86-64-v3")
    (filters,) = [o for o in facts.operands if o.load.buffer == "W"]
    assert facts.order[0] == "k" and filters.strides["s"] == 1
    assert new_of_line(facts, filters, 6) == filters.bytes
    assert new_of_line(replace(facts, l1=6 * 16 * LINE), filters, 6) == LINE
    apart = replace(filters, strides=filters.strides | {"k": PAGE // filters.bytes})
    assert new_of_line(facts, apart, 6) == LINE


def test_rows_a_power_of_two_apart_share_the_sets_of_a_cache() -> None:
    """Along x, rows of 128 channels lie 512 bytes apart: half a line of each takes a cache as if it
    were eight times as large, while it waits for the other half; rows of 144 channels do not."""
    even, odd = (facts_of_case(name, "weights", "x86-64-v3") for name in ("grp", "dw3"))
    assert even.order[0] == odd.order[0] == "x"
    (rows,) = [o for o in even.operands if o.load.buffer == "dY"]
    assert [aliased(even, rows, width) for width in (8, 16, 32)] == [8.0, 1.0, 1.0]
    (others,) = [o for o in odd.operands if o.load.buffer == "dY"]
    assert aliased(odd, others, 8) == 1.0


def test_a_sum_reads_from_the_third_cache_as_fast_as_lines_come_in_order() -> None:
    """Copies, and lines that are not asked for in order, come at the other rate."""
    where = replace(target("x86-64-v3"), cpu_model="AMD EPYC (family 25, model 17)")
    machine = machine_of(where)
    subject = lower(CASES["go3"].program("forward", "nhwc"))
    facts = facts_of(next(subject.nests()), subject, where)
    third = facts.l2 + 1
    assert bandwidth_of(facts, third, machine) == machine.swept > machine.l3
    assert bandwidth_of(facts, third, replace(machine, swept=0.0)) == machine.l3
    assert bandwidth_of(facts, 2 * facts.l3, machine) == machine.memory
    assert bandwidth_of(facts, 1000, machine) == machine.rate_from("L1")


def operands_of(case: Case, which: str) -> tuple[Facts, dict[str, Operand]]:
    subject = lower(case.program(which, "nhwc"))
    facts = facts_of(next(n for n in subject.nests() if n.reduces), subject, target("x86-64-v3"))
    return facts, {o.load.buffer: o for o in facts.operands}


def test_a_tile_reads_the_filters_of_its_group() -> None:
    """Others stay where they are while its positions go by; positions are no such loops."""
    case = Case("groups", 1, 96, 20, 160, 3, 1, 1, groups=8)
    facts, operands = operands_of(case, "forward")
    assert facts.parting == {"g"}
    whole = 160 * 12 * 9 * 4
    assert bytes_of_part(facts, operands["W"], {"k": 10}) == whole / 16
    facts, operands = operands_of(replace(case, groups=1), "forward")
    assert facts.parting == set()
    assert bytes_of_part(facts, operands["W"], {"k": 80}) == 160 * 96 * 9 * 4 / 2


def test_a_piece_reads_its_own_taps() -> None:
    """Every third row of the taps, of a copy every third of each too."""
    _, operands = operands_of(Case("pieces", 1, 40, 40, 60, 9, 3, 3), "input")
    assert operands["W"].reached == pytest.approx((1 / 3, 1 / 9))
    assert operands["dY"].reached == (1.0, 1.0)


def test_another_way_is_taken_beside_copies_of_a_call() -> None:
    """What many calls share counts in part, and a copy that memory holds comes from there."""
    facts, operands = operands_of(Case("wide", 1, 500, 20, 600, 9, 1, 1), "forward")
    machine = machine_of(target("x86-64-v3"))
    plain = Candidate("k", 16, (("x", (6, 4)),), cycles=1e6)
    packed = replace(plain, packs=frozenset({"W"}))
    size, ahead = 600 * 500 * 81 * 4, cycles_ahead(facts, packed, machine)
    assert cycles_ahead(facts, plain, machine) == 0
    assert ahead == pytest.approx(AHEAD * copy_cycles(facts, operands["W"], packed, machine))
    read = whole_cycles(facts, packed, machine) - ahead - packed.cycles
    assert read >= size / machine.memory
