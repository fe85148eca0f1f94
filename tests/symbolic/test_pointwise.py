"""Single elements equal those of the whole evaluation."""

from __future__ import annotations

import itertools
import random

import pytest

from convgen.layers.convolution import Conv2d
from convgen.layers.normalization import GroupNorm
from convgen.symbolic.derive import grad
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse
from convgen.symbolic.pointwise import Elements, WorkExceeded

LAYERS = [
    Conv2d(4, 6, 3, stride=2, padding=1, groups=2).program((2, 4, 6, 7)),
    Conv2d(2, 2, 3, stride=2, padding=2, dilation=2, padding_mode="reflect").program((1, 2, 7, 6)),
    GroupNorm(2, 4).program((2, 4, 2, 3)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda p: p.name)
@pytest.mark.parametrize("magnitude", [False, True])
def test_elements_are_those_of_the_whole(layer, magnitude):
    chance = random.Random(1)
    for program in (layer, grad(layer)):
        given = {
            t.name: [chance.randrange(-5, 6) for _ in range(t.elements)] for t in program.inputs
        }
        whole = evaluate(program, given, magnitude=magnitude)
        single = Elements(program, given, magnitude=magnitude)
        for name, array in whole.items():
            for index in itertools.product(*map(range, array.shape)):
                assert single(name, index) == pytest.approx(array[index], rel=1e-12)


def test_work_is_limited():
    total = parse("Y[i] = sum(j: X[i, j])", X=(3, 1000))
    elements = Elements(total, {"X": [1] * 3000}, limit=1500)
    assert elements("Y", [2]) == 1000
    with pytest.raises(WorkExceeded):
        elements("Y", [1])
