"""Rewrites across stages: batch norm's gradient in closed form, and what must stay as it is."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from convgen.errors import InternalError
from convgen.layers.normalization import BatchNorm1d, BatchNorm2d
from convgen.symbolic.derive import grad
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse
from convgen.symbolic.rewrite import closed_form, closed_form_steps
from convgen.symbolic.rewrite.across_stages import check


def outputs(program, seed=1):
    rng = random.Random(seed)
    values = {t.name: [rng.uniform(-1, 1) for _ in range(t.elements)] for t in program.inputs}
    found = evaluate(program, values, exact=False)
    return {t.name: found[t.name].data for t in program.outputs}


def test_batch_norm_in_closed_form(golden):
    layer = BatchNorm2d(3, track_running_stats=False).program((4, 3, 4, 4))
    found = closed_form_steps(grad(layer))
    assert [s.name for s in found] == [
        "drop_deviations", "share_sums", "inline_pointwise", "gather_factors",
    ]  # fmt: skip
    line = str(found[-1].program).splitlines()[-1]
    assert line == (
        "dX[n, c, h, w] = (64 * dY[n, c, h, w] - (X[n, c, h, w] - mean[c]) * dgamma[c]"
        " / sqrt(var[c] + 1e-5) - dbeta[c]) * gamma[c] / (64 * sqrt(var[c] + 1e-5))"
    )
    golden("formulas/batch_norm_closed.txt", str(found[-1].program))
    golden("formulas/batch_norm_closed.tex", found[-1].program.latex())


@pytest.mark.parametrize("affine", [True, False])
def test_closed_form_computes_the_same(affine):
    layer = BatchNorm1d(3, affine=affine, track_running_stats=False).program((5, 3))
    before = grad(layer)
    after = closed_form(before)
    assert after is not before
    old, new = outputs(before), outputs(after)
    for name, values in old.items():
        assert new[name] == pytest.approx(values, rel=1e-9, abs=1e-12)


def test_an_open_batch_is_counted():
    text = "program norm\ntensor X: f32[N, 2]\nM[c] = sum(n: X[n, c]) / N\nV[c] = sum(n: (X[n, c] - M[c])**2) / N\n"
    after = closed_form(grad(parse(text)))
    assert "dM" not in str(after)
    assert str(after).splitlines()[-1].startswith("dX[n, c] = 2 * dV[c] * (X[n, c] - M[c]) / N")


@pytest.mark.parametrize(
    "text",
    [
        "M[c] = sum(n: X[n, c]) / 7",  # no mean: 8 are added up
        "M[c] = sum(n < 7: X[n, c]) / 7",  # a mean of others than are summed below
    ],
)
def test_what_is_no_mean_stays(text):
    program = parse(
        f"program norm\ntensor X: f32[8, 2]\n{text}\nV[c] = sum(n: (X[n, c] - M[c])**2) / 8\n"
    )
    before = grad(program)
    after = closed_form(before)
    assert "dM[c]" in str(after)
    assert outputs(after)["dX"] == pytest.approx(outputs(before)["dX"], rel=1e-9)


def test_a_program_without_means_is_the_same_object():
    program = grad(parse("Y[y] = sum(r: X[y + r] * W[r])", X=6, W=3))
    assert closed_form(program) is program


def test_the_check_notices_a_wrong_rewrite():
    before = grad(BatchNorm1d(2, track_running_stats=False).program((4, 2)))
    after = closed_form(before)
    wrong = parse(str(after).replace("- dbeta[c]", "+ dbeta[c]"))
    check(before, after, "right")
    with pytest.raises(InternalError, match="mutant changed dX"):
        check(before, replace(wrong, name=after.name), "mutant")
