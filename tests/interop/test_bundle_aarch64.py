"""Bundles for AArch64, made here and run under qemu."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import convgen as cg
from convgen.interop.aot.export import export

sys.path.insert(0, str(Path(__file__).parent))
from bundles import CONV, CONV_SHAPES, STRICT, compiler, draws, run  # noqa: E402

TESTED = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "conv.h"
static void *get(int64_t n) { void *p = aligned_alloc(64, (size_t)((n + 127) / 64 * 64)); memset(p, 255, (size_t)n); return p; }
static uint32_t bits = 1;
static float *draw(int n) {
  float *p = get(n * 4); int i;
  for (i = 0; i < n; i++) { bits = bits * 1664525u + 1013904223u; p[i] = (float)((double)(bits >> 8) / 16777216.0 - 0.5); }
  return p;
}
int main(void) {
  void *context = get(CONV_CONTEXT_BYTES), *packed, *work, *saved, *pool; const void *weights[2]; void *grads[2];
  conv_parallel threads; FILE *out; int i;
  float *x = draw(648), *w = draw(270), *b = draw(10), *dy = draw(600), *y = get(2400), *dx = get(2592);
  float *again = get(2400);
  if (conv_open(context)) return 1;
  weights[0] = w; weights[1] = b; grads[0] = get(1080); grads[1] = get(40);
  packed = get(conv_packed_bytes(context)); work = get(conv_workspace_bytes(context, 3, 2));
  saved = get(conv_saved_bytes(context, 3)); pool = get(conv_pool_bytes());
  if (conv_pool_start(pool, 2, &threads)) return 2;
  if (conv_pack(context, weights, packed)) return 3;
  if (conv_forward(context, 3, x, packed, NULL, 0, y, saved, work, &threads)) return 4;
  if (conv_forward(context, 3, x, packed, NULL, 0, again, NULL, work, NULL)) return 5;
  if (memcmp(y, again, 2400)) return 6;
  if (conv_backward(context, 3, x, dy, packed, saved, dx, grads, work, &threads)) return 7;
  conv_pool_stop(pool);
  out = fopen("results.bin", "wb");
  fwrite(y, 1, 2400, out); fwrite(dx, 1, 2592, out);
  for (i = 0; i < 2; i++) fwrite(grads[i], 1, i ? 40 : 1080, out);
  return fclose(out);
}
"""


def test_cross_export_needs_no_tools(tmp_path):
    """Everything but the shared library is written on any machine."""
    program = cg.parse(CONV, **CONV_SHAPES)
    export(program, tmp_path, name="conv", target="aarch64")
    data = (tmp_path / "conv.o").read_bytes()
    assert data[:4] == b"\x7fELF" and data[18] == 0xB7  # EM_AARCH64
    assert "fmla" in (tmp_path / "conv.s").read_text()
    assert "aarch64" in (tmp_path / "conv.h").read_text()


@pytest.mark.full
def test_aarch64_under_qemu(tmp_path):
    program = cg.parse(CONV, **CONV_SHAPES)
    export(program, tmp_path, name="conv", target="aarch64")
    (tmp_path / "user.c").write_text(TESTED)
    cross, qemu = compiler("aarch64-linux-gnu-gcc"), compiler("qemu-aarch64")
    run(
        [cross, "-std=c11", *STRICT, "-static", "user.c", "libconv.a", "-lpthread", "-o", "user"],
        tmp_path,
    )
    run([qemu, "./user"], tmp_path)
    found = np.fromfile(tmp_path / "results.bin", np.float32)
    state, arrays = 1, []
    for shape in (*CONV_SHAPES.values(), (3, 10, 4, 5)):
        values, state = draws(int(np.prod(shape)), state)
        arrays.append(values.astype(np.float32).reshape(shape))
    wanted = [cg.compile(program)(*arrays[:3]), *cg.compile(cg.grad(program))(*arrays)]
    place = 0
    for want in wanted:
        got = found[place : place + want.size].reshape(want.shape)
        assert np.abs(got - want).max() <= 1e-5 * max(np.abs(want).max(), 1)
        place += want.size
    assert place == found.size


@pytest.mark.full
def test_lenet_on_aarch64(tmp_path):
    """The example of a whole network runs, alone and with threads, to the same bits."""
    model = cg.compile(cg.zoo.lenet5(), input=(4, 1, 28, 28))
    export(model, tmp_path, name="lenet5", target="aarch64")
    cross, qemu = compiler("aarch64-linux-gnu-gcc"), compiler("qemu-aarch64")
    run(
        [cross, "-std=c99", *STRICT, "-static", "main.c", "liblenet5.a", "-lpthread", "-o", "user"],
        tmp_path,
    )
    one = run([qemu, "./user", "5", "1"], tmp_path).stdout
    assert one == run([qemu, "./user", "5", "3"], tmp_path).stdout
    assert one.count("\n") == 14 and "aarch64" in one
