"""The road from a program to FLAT: stages watched by the knobs, temporaries placed, answers kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_programs import PROGRAMS

from convgen import knobs
from convgen.errors import InternalError, ScheduleError
from convgen.ir.interpret import difference
from convgen.ir.nodes import Buffer, Form, Kernel, Layout, Nest, Phase, StoreNode
from convgen.ir.nodes import Const as Number
from convgen.ir.visit import map_nest_exprs
from convgen.passes.lower import lower
from convgen.passes.pipeline import build, build_stages
from convgen.passes.storage import lifetimes, place_temporaries, touched
from convgen.symbolic import dsl as cg
from convgen.types import f32

i, j = cg.axes("i j")


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v4"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_stage_gives_the_same_answer(name: str, target: str) -> None:
    with knobs.override(VERIFY=2):
        built = build_stages(PROGRAMS[name](), None, target)
    assert [built.nest.form, built.scheduled.form, built.flat.form] == list(Form)


def test_the_first_pass_that_changes_the_answer_is_named() -> None:
    def wrong(kernel: Kernel, target: Any) -> Kernel:
        return replace(kernel, phases=kernel.phases[:-1])

    with (
        knobs.override(VERIFY=2),
        pytest.raises(InternalError, match=r"\[wrong\] the pass changed"),
    ):
        build(PROGRAMS["two stages"](), None, "x86-64-v3", legalizing=[wrong])


def test_stages_are_dumped_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    A = cg.tensor("A", (4, 8))
    program = cg.define("Y", [i], cg.sum_over([j], A[i, j]))
    with knobs.override(DUMP=tmp_path, DEBUG=3):
        build(program, "unroll(i)", "x86-64-v3")
    names = sorted(p.name for p in (tmp_path / "Y").iterdir())
    assert [n[:2] for n in names] == [f"{k:02}" for k in range(len(names))]
    assert names[:4] == ["00-program.txt", "01-lower.txt", "02-schedule.txt", "03-flatten.txt"]
    printed = capsys.readouterr().err
    assert "schedule of Y:\nunroll(i)" in printed and "after flatten:" in printed


def test_illegal_schedules_are_refused() -> None:
    A = cg.tensor("A", (4, 8))
    program = cg.define("Y", [i], cg.sum_over([j], A[i, j]))
    with pytest.raises(ScheduleError):
        build(program, "split(q, 4)", "x86-64-v3")


def chain(*shapes: int) -> Kernel:
    """T0 -> T1 -> ... each written by a phase that reads the one before."""
    names = [f"T{k}" for k in range(len(shapes))]
    buffers = [
        Buffer(n, f32, (e,), Layout((0,)), "temporary") for n, e in zip(names, shapes, strict=True)
    ]
    phases: list[Phase] = []
    for k, name in enumerate(names):
        value: Any = Number(1.0, f32)
        nest = Nest(name, (), (), (), (), (), (StoreNode(name, (), value),))
        if k:
            stores = (StoreNode(names[k - 1], (), value), *nest.stores)
            nest = replace(nest, stores=stores)
        phases.append(Phase(name, (nest,)))
    return Kernel("chain", tuple(buffers), tuple(phases), Form.NEST)


def test_temporaries_share_memory_when_their_lives_do_not_meet() -> None:
    kernel = chain(100, 50, 100, 50)
    lives = lifetimes(kernel)
    assert (lives["T0"].first, lives["T0"].last, lives["T3"].first) == (0, 1, 3)
    space = place_temporaries(kernel)
    spans = {n: (o, o + space.sizes[n]) for n, o in space.offsets.items()}
    for a in spans:
        for b in spans:
            if a != b and lives[a].meets(lives[b]):
                assert spans[a][1] <= spans[b][0] or spans[b][1] <= spans[a][0]
    assert all(offset % 64 == 0 for offset in space.offsets.values())
    assert space.total_bytes == 448 + 256 < sum(space.sizes.values())


def test_padded_buffers_are_never_shared() -> None:
    kernel = chain(100, 50, 100, 50)
    first = replace(kernel.buffers[0], layout=Layout((0,), (), ((1, 1),)))
    kernel = replace(kernel, buffers=(first, *kernel.buffers[1:]))
    space = place_temporaries(kernel)
    end = space.offsets["T0"] + space.sizes["T0"]
    for name in ("T1", "T2", "T3"):
        start = space.offsets[name]
        assert start >= end or start + space.sizes[name] <= space.offsets["T0"]


def test_touched_agrees_between_forms() -> None:
    built = build_stages(PROGRAMS["two stages"](), "", "x86-64-v3")
    assert touched(built.nest.phases[1]) == {"X", "M", "Y"}
    assert touched(built.flat.phases[1]) >= {"X", "M", "Y"}


def test_the_comparison_sees_a_wrong_constant() -> None:
    kernel = lower(PROGRAMS["two stages"]())
    last = kernel.phases[-1]
    assert isinstance(last.body, tuple)
    nest = map_nest_exprs(last.body[0], lambda e: Number(0.0, f32))
    assert difference(
        kernel, replace(kernel, phases=(*kernel.phases[:-1], replace(last, body=(nest,))))
    )
