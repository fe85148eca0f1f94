"""Updates in place happen exactly where they are safe."""

from convgen.layers import BatchNorm2d
from convgen.layers.update import SGD, Adam
from convgen.passes.in_place import update_in_place
from convgen.passes.lower import lower
from convgen.symbolic import dsl


def test_optimizers_update_in_place():
    for optimizer in (SGD(0.1, momentum=0.9), SGD(0.1), SGD(0.1, 0.9, nesterov=True), Adam()):
        program = optimizer.program(10)
        kernel, left = update_in_place(lower(program), program.updates)
        assert not left
        names = {b.name for b in kernel.buffers}
        assert not any(new in names for _, new in program.updates)
        assert all(kernel.buffer(s).role == "output" for s, _ in program.updates)


def test_running_statistics_update_in_place():
    program = BatchNorm2d(3).program((2, 3, 4, 4), training=True)
    _, left = update_in_place(lower(program), program.updates)
    assert not left


def test_shifted_or_later_reads_are_copied():
    (i,) = dsl.axes("i")
    state = dsl.tensor("S", 4, role="state")
    moved = dsl.define("T", [i], state[i - 1], extents={i: 4})
    shifted = dsl.combine("shift", [moved], updates={"S": "T"})
    _, left = update_in_place(lower(shifted), shifted.updates)
    assert left == (("S", "T"),)
    fresh = dsl.define("T", [i], state[i] + 1)
    late = dsl.define("Y", [i], fresh[i] * state[i])
    program = dsl.combine("late", [late], outputs=["Y"], updates={"S": "T"})
    _, left = update_in_place(lower(program), program.updates)
    assert left == (("S", "T"),)
