"""Gradients of whole programs: pieces with constraints, chosen elements, far shifts, two layers."""

from __future__ import annotations

from typing import Any

import pytest
from derive_oracle import check_gradients, check_second_order

from convgen.symbolic.parse import parse

PROGRAMS: dict[str, str] = {
    "triangle": """program triangle
tensor X: f32[4]
output Y: f32[4,4]
Y[i,j] = X[i]*X[j] for j <= i
Y[i,j] = 0 for i <= j - 1
""",
    "triangle_relu": """program triangle_relu
tensor X: f32[4,3]
output Y: f32[4,4]
Y[i,j] = relu(sum(k: X[i,k]*X[j,k]) + X[i,0]) for j <= i
Y[i,j] = 2*X[j,1] for i <= j - 1
""",
    "triangle_max": """program triangle_max
tensor X: f32[4,3]
output Y: f32[4,4]
Y[i,j] = max(k: X[i,k]*X[j,k]) for j <= i
Y[i,j] = 2*X[j,1] for i <= j - 1
""",
    "embedding": """program embedding
tensor E: f32[5,3]
tensor idx: i64[4]
Y[n,d] = sum(v: select(idx[n] == v, E[v,d], 0))
""",
    "causal_product": """program causal_product
tensor Q: f32[4,2]
tensor K: f32[4,2]
S[i,j] = sum(d: Q[i,d]*K[j,d])
Y[i] = prod(j where j <= i: S[i,j])
""",
    "minmax": """program minmax
tensor X: f32[6]
Y[i] = maximum(X[i], X[i+1])*minimum(X[i], 2) for i < 5
""",
    "far_shifts": """program far_shifts
tensor X: f32[6]
Y[i] = X{replicate}[i-9] + X{circular}[i+5] + X{reflect}[i-4] for i < 6
""",
    "two_constants": """program two_constants
tensor X: f32[3,4]
tensor m: f32[3]
Y[n,y] = sum(r < 5, q<3: X{2, m[n]}[n + q - 1, y + r - 2]) for n < 3, y < 4
""",
    "scalar": """program scalar
tensor X: f32[3,4]
Y[] = sum(n, y: X[n,y]*X[n,y])
""",
    "two_layers": """program two_layers
tensor X: f32[2,6]
tensor W: f32[2,2,3]
A[k,y] = relu(sum(c,r: X[c,2*y+r-1]*W[k,c,r])) for y < 3
B[k,y] = relu(sum(c,r: A{replicate}[c,y+r-1]*W[k,c,r]) + A[k,y]) for y < 3
Y[] = sum(k,y: B[k,y]*B[k,y])
""",
    "blocks_read_twice": """program blocks_read_twice
tensor X: f32[4,6]
Y[a,b,i,j] = X[2*a+i,3*b+j]*X[2*a+j,b] for i < 2, j < 2, a<2, b<2
""",
}
VALUES: dict[str, dict[str, Any]] = {"embedding": {"idx": [4, 0, 2, 2]}}


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_of_programs(name: str) -> None:
    program = parse(PROGRAMS[name])
    check_gradients(program, values=VALUES.get(name), bound=3)
    if name not in VALUES:
        check_second_order(program)
