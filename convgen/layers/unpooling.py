"""Max unpooling: values return to the places where max pooling found them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from convgen.errors import ShapeError
from convgen.layers.base import Layer, Shape, expect_rank, per_dimension, positive
from convgen.layers.pooling import row_major
from convgen.symbolic import dsl
from convgen.symbolic.boundary import OMIT, ZERO
from convgen.symbolic.functions import equal, logical_and, select
from convgen.symbolic.program import Program
from convgen.types import DType, f32, i64


class _MaxUnpool(Layer):
    """Y[n, c, h, w] = X[n, c, y, x] where I[n, c, y, x] == h*W + w, else 0 (torch.nn.MaxUnpool).

    Inputs X and I, the second output of MaxPool(..., return_indices=True) with the same arguments.
    Every element looks at the windows that cover it; where several have recorded it, the last one
    in row-major order wins. `output_size` chooses among the sizes that pool to X's size (default:
    the smallest).
    """

    rank: ClassVar[int]

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        output_size: int | Sequence[int] | None = None,
    ) -> None:
        rank = self.rank
        self.kernel_size = positive(per_dimension(kernel_size, rank, "kernel_size"), "kernel_size")
        chosen = self.kernel_size if stride is None else stride
        self.stride = positive(per_dimension(chosen, rank, "stride"), "stride")
        self.padding = positive(per_dimension(padding, rank, "padding"), "padding", least=0)
        self.output_size = (
            None if output_size is None else per_dimension(output_size, rank, "output_size")
        )

    def inputs(self, *shapes: Shape) -> tuple[str, ...]:
        return ("X", "I")

    def input_dtypes(self, *shapes: Shape) -> tuple[DType | None, ...]:
        return (None, i64)

    def output_shape(self, *shapes: Shape) -> Shape:
        shape = shapes[0]
        expect_rank(self, shape, self.rank + 2, f"(N, C, {self.rank} spatial extents)")
        if len(shapes) != 2 or shapes[1] != shape:
            raise ShapeError(
                f"{self!r}: values and their positions",
                expected=f"two inputs of shape {list(shape)}",
                got=" and ".join(str(list(s)) for s in shapes),
            )
        sizes = [
            (i - 1) * s - 2 * p + k
            for i, k, s, p in zip(
                shape[2:], self.kernel_size, self.stride, self.padding, strict=True
            )
        ]
        for size, wanted, s in zip(sizes, self.output_size or sizes, self.stride, strict=True):
            if not size - s < wanted < size + s or wanted < 1:
                raise ShapeError(
                    f"{self!r}: output size {wanted}",
                    expected=f"between {max(size - s + 1, 1)} and {size + s - 1}",
                )
        return (*shape[:2], *(self.output_size or sizes))

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape, out = shapes[0], self.output_shape(*shapes)
        n, c = dsl.axes("n c")
        places = dsl.axes(" ".join(("d", "h", "w")[3 - self.rank :]))
        taps = dsl.axes(" ".join(("i", "j", "k")[3 - self.rank :]))
        kinds = (ZERO, ZERO, *(OMIT,) * self.rank)
        covering = [(k - 1) // s + 1 for k, s in zip(self.kernel_size, self.stride, strict=True)]
        source = [
            (h + p) // s - (t if many > 1 else 0)
            for h, t, s, p, many in zip(
                places, taps, self.stride, self.padding, covering, strict=True
            )
        ]
        x = dsl.tensor("X", shape, dtype).pad(*kinds)[(n, c, *source)]
        winner = dsl.tensor("I", shape, i64).pad(*kinds)[(n, c, *source)]
        here: Any = equal(winner, row_major(places, out[2:]))
        over = [t for t, many in zip(taps, covering, strict=True) if many > 1]
        spans = {t: many for t, many in zip(taps, covering, strict=True) if many > 1}
        extents = dict(zip((n, c, *places), out, strict=True))
        if over:  # windows overlap: the last that recorded this element counts
            place = row_major(source, shape[2:]) + 1
            last = dsl.max_over(over, select(here, place, 0), extents=spans)
            at = dsl.define("last", [n, c, *places], last, extents=extents)
            here = logical_and(here, equal(at[(n, c, *places)], place))
        # an axis over one value keeps the sum, whose terms outside are left out
        one = dsl.axes("one")
        over, spans = over or list(one), spans or {one[0]: 1}
        body = dsl.sum_over(over, select(here, x, 0), extents=spans)
        return dsl.define("Y", [n, c, *places], body, extents=extents, name="max_unpool")


class MaxUnpool1d(_MaxUnpool):
    """1-d max unpooling."""

    rank = 1


class MaxUnpool2d(_MaxUnpool):
    """2-d max unpooling, torch.nn.MaxUnpool2d, SegNet's decoder.

    >>> MaxUnpool2d(2).output_shape((1, 8, 7, 7), (1, 8, 7, 7))
    (1, 8, 14, 14)
    """

    rank = 2


class MaxUnpool3d(_MaxUnpool):
    """3-d max unpooling."""

    rank = 3
