"""Kernels on arrays of other libraries, and as C functions by address. Skips only what is absent."""

import ctypes
import gc

import numpy as np
import pytest

import convgen as cg
from convgen.runtime import call, threads

TEXT = "Y[n, k, y] = sum(c, r: X[n, c, 2*y + r - 1] * W[k, c, r]) + b[k] for y < 4"


@pytest.fixture(scope="module")
def kernel():
    return cg.compile(cg.parse(TEXT, X=(2, 3, 8), W=(4, 3, 3), b=(4,)), threads=1)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 8), (4, 3, 3), (4,))]


def copies(kernel):
    return sum(times for _, _, times in kernel.report().copied)


class Interface:
    """Only __array_interface__."""

    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


class Pack:
    """Only DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("wrap", [Interface, Pack])
def test_any_array_protocol_is_read_and_written_without_a_copy(kernel, arrays, wrap):
    want = kernel(*arrays)
    before = copies(kernel)
    out = wrap(np.zeros_like(want))
    assert kernel(*map(wrap, arrays), out=out) is out
    assert np.array_equal(out.array, want) and copies(kernel) == before


def test_torch_tensors(kernel, arrays):
    torch = pytest.importorskip("torch")
    want = kernel(*arrays)
    before = copies(kernel)
    tensors = [torch.from_numpy(a) for a in arrays]
    out = torch.empty(want.shape)
    assert kernel(*tensors, out=out) is out
    assert np.array_equal(out.numpy(), want) and copies(kernel) == before
    strided = tensors[0].transpose(0, 2).contiguous().transpose(0, 2)
    assert np.array_equal(kernel(strided, *tensors[1:]), want)
    assert copies(kernel) == before + 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.requires_grad_(), "cannot be read as an array.*detach"),
        (lambda t: t.to("meta"), "cannot be read as an array.*meta"),
        (lambda t: t.to_sparse(), "cannot be read as an array.*strided"),
        (lambda t: t.bfloat16(), "X (cannot be read|has the wrong dtype)"),
        (lambda t: t.double(), "wrong dtype; expected float32, got float64"),
        (lambda t: t[:, :2], "wrong shape"),
        (lambda t: t[0], "wrong rank"),
    ],
)
def test_torch_tensors_that_are_refused(kernel, arrays, spoil, message):
    torch = pytest.importorskip("torch")
    with pytest.raises(cg.DataError, match=message):
        kernel(spoil(torch.from_numpy(arrays[0].copy())), *arrays[1:])


def test_outs_that_are_refused(kernel, arrays):
    want = kernel(*arrays)
    cases = [
        ("is written by the kernel", bytearray(128)),
        ("wrong dtype", np.empty(want.shape, np.float64)),
        ("wrong shape", np.empty(want.shape[::-1], np.float32)),
        ("strided", np.empty((*want.shape, 2), np.float32)[..., 0]),
        ("wrong number of arrays", (np.empty_like(want), np.empty_like(want))),
        ("overlaps X", arrays[0].reshape(-1)[:32].reshape(want.shape)),
    ]
    frozen = np.empty_like(want)
    frozen.flags.writeable = False
    cases += [("read-only", frozen), ("read-only", Interface(frozen))]
    for message, out in cases:
        with pytest.raises(cg.DataError, match=message):
            kernel(*arrays, out=out)


def test_jax_arrays(kernel, arrays):
    jnp = pytest.importorskip("jax.numpy")
    want = kernel(*arrays)
    assert np.array_equal(kernel(*map(jnp.asarray, arrays)), want)
    with pytest.raises(cg.DataError, match="out Y is read-only"):
        kernel(*arrays, out=jnp.zeros(want.shape))


def test_arrow_tensors_and_arrays(kernel, arrays):
    pa = pytest.importorskip("pyarrow")
    want = kernel(*arrays)
    before = copies(kernel)
    out = np.empty_like(want)
    tensors = [pa.Tensor.from_numpy(a) for a in arrays[:2]]
    kernel(*tensors, pa.array(arrays[2]), out=pa.Tensor.from_numpy(out))
    assert np.array_equal(out, want) and copies(kernel) == before
    with pytest.raises(cg.DataError, match="b cannot be read as an array.*null"):
        kernel(*arrays[:2], pa.array([1.0, None, 2.0, 3.0], pa.float32()))


def test_the_short_way_gives_the_same_and_checks_the_same(kernel, arrays):
    want = kernel(*arrays)
    out = np.empty_like(want)
    assert kernel(*arrays, out=out) is out and np.array_equal(out, want)
    assert kernel._quick(arrays, None) is not None
    # Each of these leaves the short way and meets the checks.
    for bad in (arrays[0].astype(np.float64), arrays[0][:, :, ::-1], arrays[0].tolist()):
        found = kernel._quick([bad, *arrays[1:]], None)
        assert type(found) is object
    overlapping = arrays[0].reshape(-1)[:32].reshape(want.shape)
    assert type(kernel._quick(arrays, overlapping)) is object
    assert np.array_equal(kernel(arrays[0][:, :, ::-1], *arrays[1:]),
                          kernel(arrays[0][:, :, ::-1].copy(), *arrays[1:]))  # fmt: skip


def matrix_kernel(schedule):
    program = cg.parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=(8, 64), W=(64, 64))
    rng = np.random.default_rng(1)
    x, w = rng.random((8, 64), np.float32), rng.random((64, 64), np.float32)
    return cg.compile(program, schedule=schedule, threads=1), x, w


PACKS = "split(k, 8); pack(W, k_in, hoist=True); vectorize(k_in)"


@pytest.mark.parametrize("schedule", [PACKS, "split(k, 8)"])
def test_prepared_calls_take_the_short_way(schedule, monkeypatch):
    kernel, x, w = matrix_kernel(schedule)
    assert kernel.packs == (("W",) if "pack" in schedule else ())
    want, packed = kernel(x, w), kernel.prepare(W=w)
    out = np.empty_like(want)
    kernel(x, packed), kernel(x, packed, out=out)  # after which the shapes are known
    looks = []
    monkeypatch.setattr(kernel, "_arrange", lambda *given: looks.append(given))
    bound = []
    bind = threads.Table.bind
    monkeypatch.setattr(threads.Table, "bind", lambda *given: (bound.append(1), bind(*given)))
    for handle in (packed, kernel.prepare(W=w + 1), packed):
        want = x @ handle.arrays["W"].T
        for given in (None, out, (out,)):
            out[:] = 0
            found = kernel(x, handle, out=given)
            np.testing.assert_allclose(found, want, rtol=1e-5)
    assert looks == []
    # The arguments are written anew when another handle comes, and only then.
    assert len(bound) == (2 if kernel.packs else 0)
    assert kernel.report().prepared_calls == (11 if kernel.packs else 0)


def test_the_short_way_tells_handles_apart():
    program = cg.parse(
        "Y[n, k] = sum(c: X[n, c] * W[c, k]) + B[n, k]", X=(8, 8), W=(8, 8), B=(8, 8)
    )
    kernel, other = (cg.compile(program, schedule="vectorize(k)", threads=1) for _ in range(2))
    x, w, b = np.random.default_rng(3).random((3, 8, 8), np.float32)
    ahead, bias, foreign = kernel.prepare(W=w), kernel.prepare(B=b), other.prepare(W=w)
    both = kernel.prepare(W=w, B=b)
    want = kernel(x, w, b)
    for _ in range(2):
        for given in ((ahead, b), (w, bias), (ahead, bias), (both, both), (both, b), (ahead, both)):
            assert np.array_equal(kernel(x, *given), want)
        assert np.array_equal(kernel(x, both), want)
        for given, name in (((foreign, b), "W"), ((bias, ahead), "W"), ((w, ahead), "B")):
            with pytest.raises(cg.DataError, match=f"does not stand for {name}"):
                kernel(x, *given)


def test_addresses_are_those_numpy_says(arrays):
    assert call.addresses_of(arrays) == [a.ctypes.data for a in arrays]
    saved, call._OFFSET = call._OFFSET, None
    try:
        assert call.addresses_of(arrays) == [a.ctypes.data for a in arrays]
    finally:
        call._OFFSET = saved


def test_states_are_kept_apart_on_the_short_way():
    text = "program step\nstate P: f32[4]\ntensor G: f32[4]\nP2[i] = P[i] - G[i]\nupdate P <- P2"
    kernel = cg.compile(cg.parse(text), threads=1)
    p, g = np.ones(4, np.float32), np.full(4, 0.25, np.float32)
    for step in range(1, 4):
        kernel(p, g)
        assert np.array_equal(p, np.full(4, 1 - 0.25 * step, np.float32))
    with pytest.raises(cg.DataError, match="overlaps"):
        kernel(p, p)
    p.flags.writeable = False
    with pytest.raises(cg.DataError, match="read-only"):
        kernel(p, g)


def function_call(kernel, arrays, invoke):
    """The result of the kernel's C function, called by `invoke(addresses)`."""
    out = np.zeros_like(kernel(*arrays))
    work = np.zeros(kernel.workspace_bytes, np.uint8)
    invoke([*arrays, out, work])
    return out


def test_ctypes_function(kernel, arrays):
    found = function_call(kernel, arrays, lambda a: kernel.ctypes(*(v.ctypes.data for v in a)))
    assert np.array_equal(found, kernel(*arrays))


def test_address_outlives_garbage_collection(arrays):
    kernel = cg.compile(cg.parse(TEXT, X=(2, 3, 8), W=(4, 3, 3), b=(4,)), threads=1)
    function = kernel.ctypes
    want = kernel(*arrays)
    work = np.zeros(kernel.workspace_bytes, np.uint8)
    del kernel
    gc.collect()
    out = np.zeros_like(want)
    function(*(a.ctypes.data for a in [*arrays, out, work]))
    assert np.array_equal(out, want)


def test_workspace_may_begin_anywhere_and_is_kept_within(arrays):
    program = cg.parse(
        "program two\ntensor X: f32[5, 33]\nM[n] = sum(c: X[n, c])\nY[n, c] = X[n, c] - M[n]\n"
    )
    kernel = cg.compile(program, threads=1)
    x = np.random.default_rng(2).random((5, 33), np.float32)
    want = kernel(x)
    want = want[-1] if isinstance(want, tuple) else want
    size = kernel.workspace_bytes
    for start in (0, 1, 7, 64):
        guarded = np.full(size + 256, 0xA5, np.uint8)
        guarded[start : start + size] = 0
        out = np.zeros_like(want)
        kernel.ctypes(x.ctypes.data, out.ctypes.data, guarded.ctypes.data + start)
        assert np.array_equal(out, want)
        assert (guarded[:start] == 0xA5).all() and (guarded[start + size :] == 0xA5).all()


def test_cffi(kernel, arrays):
    cffi = pytest.importorskip("cffi")
    assert kernel.cffi_declaration == (
        "typedef void (*Y_kernel)(const float *X, const float *W, const float *b, float *Y, "
        "void *workspace);"
    )
    ffi = cffi.FFI()
    ffi.cdef(kernel.cffi_declaration)
    function = ffi.cast("Y_kernel", kernel.address)

    def invoke(given):
        function(*(ffi.from_buffer("float[]", a) for a in given[:-1]), ffi.from_buffer(given[-1]))

    assert np.array_equal(function_call(kernel, arrays, invoke), kernel(*arrays))


def test_address_is_a_number(kernel):
    assert ctypes.cast(kernel.ctypes, ctypes.c_void_p).value == kernel.address > 0


def test_address_needs_bound_sizes():
    kernel = cg.compile(cg.parse("program f\ntensor X: f32[N]\nY[n] = 2*X[n]"))
    with pytest.raises(cg.ShapeError, match="open sizes N"):
        _ = kernel.address
    other = cg.compile(cg.parse("Y[n] = 2*X[n]", X=4), target="aarch64")
    with pytest.raises(cg.TargetError, match="another machine"):
        _ = other.address


def test_prepared_calls_are_checked_like_others():
    program = cg.parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=(8, 64), W=(64, 64))
    kernel = cg.compile(program, threads=1)
    rng = np.random.default_rng(1)
    x, w = rng.random((8, 64), np.float32), rng.random((64, 64), np.float32)
    packed = kernel.prepare(W=w)
    out = np.empty((8, 64), np.float32)
    for _ in range(2):
        kernel(x, packed, out=out)
        for bad in (x[:4], x[:, :32], x.astype(np.float64)):
            with pytest.raises(cg.DataError, match="X has the wrong"):
                kernel(bad, packed, out=out)
        with pytest.raises(cg.DataError, match="W.*does not stand for|does not stand for X"):
            kernel(packed, x, out=out)
        with pytest.raises(cg.DataError, match="overlaps"):
            kernel(x, packed, out=x)
    with pytest.raises(cg.DataError, match="wrong number of arrays"):
        kernel(x, w, out=(out, out))
    with pytest.raises(cg.DataError, match="missing"):
        kernel(x, out=(w, out))
