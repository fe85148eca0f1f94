"""C and C++ programs around bundles get the bits of the Python kernels."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import convgen as cg
from convgen.interop.aot.export import export
from convgen.runtime.threads import POOL_SYMBOLS
from convgen.target import target

sys.path.insert(0, str(Path(__file__).parent))
from bundles import CONV, CONV_SHAPES, STRICT, checksum, compiler, draws, run, sums  # noqa: E402


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conv")
    program = cg.parse(CONV, **CONV_SHAPES)
    made = export(program, folder, name="conv")
    assert made.object_bytes < 100_000
    return folder


@pytest.fixture(scope="module")
def expected():
    """The checksums of Python's kernels for the numbers that main.c draws."""
    program = cg.parse(CONV, **CONV_SHAPES)
    state, arrays = 1, []
    for shape in (*CONV_SHAPES.values(), (3, 10, 4, 5)):
        values, state = draws(int(np.prod(shape)), state)
        arrays.append(values.astype(np.float32).reshape(shape))
    names = ["Y", "dX", "dW", "db"]
    results = [cg.compile(program)(*arrays[:3]), *cg.compile(cg.grad(program))(*arrays)]
    return {name: checksum(a) for name, a in zip(names, results, strict=True)}


LINKS = {
    "static": ["libconv.a", "-lpthread"],
    "object": ["conv.o"],
    "shared": ["-L.", "-lconv", "-Wl,-rpath,$ORIGIN"],
}


@pytest.mark.parametrize("link", ["static", "shared"])
@pytest.mark.parametrize("language", ["c99", "c++"])
def test_example_gets_the_bits_of_python(conv, expected, link, language):
    if language == "c99":
        start = [compiler("gcc"), "-std=c99", "-pedantic", *STRICT, "main.c"]
    else:
        start = [compiler("g++"), *STRICT, "-x", "c++", "main.c", "-x", "none"]
    run([*start, *LINKS[link], "-o", f"{language}-{link}"], conv)
    for arguments in ([], ["3", "2"]):
        assert sums(run([f"./{language}-{link}", *arguments], conv).stdout) == expected


def test_other_batches_are_the_samples_one_by_one(conv):
    """Five samples are the nominal three and two single ones; threads change nothing."""
    run([compiler("gcc"), *STRICT, "main.c", "libconv.a", "-lpthread", "-o", "any"], conv)
    one, two = (sums(run(["./any", "5", n], conv).stdout) for n in ("1", "3"))
    assert one == two and len(one) == 4
    assert "ran on" in run(["./any", "0"], conv).stdout


def test_undefined_symbols(conv):
    nm = compiler("nm")
    found = {line.split()[-1] for line in run([nm, "-u", "conv.o"], conv).stdout.splitlines()}
    assert found <= {"memcpy", "memset"}
    data = run([nm, "conv.o"], conv).stdout
    assert not [line for line in data.splitlines() if line.split()[-2] in "BbC"], "mutable globals"
    visible = [line.split() for line in data.splitlines()]
    assert all(name.startswith("conv_") for *_, kind, name in visible if kind in "TDRW")


def test_undefined_symbols_of_the_pool(conv):
    """Threads, their processors, and nothing else: what every libc of Linux has."""
    run([compiler("ar"), "x", "libconv.a", "conv_pool.o"], conv)
    text = run([compiler("nm"), "-u", "conv_pool.o"], conv).stdout
    found = {line.split()[-1] for line in text.splitlines()}
    assert "pthread_create" in found and found <= POOL_SYMBOLS
    assert all(name.startswith(("pthread_", "sched_", "mem")) for name in found)


@pytest.mark.full
def test_a_program_on_another_libc(conv, expected):
    """musl, static, through the ziglang package, with the pool."""
    pytest.importorskip("ziglang")
    isa = "x86_64" if _x86() else "aarch64"
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{isa}-linux-musl"]
    run([*zig, "-std=c99", *STRICT, "main.c", "libconv.a", "-o", "musl"], conv)
    for workers in ("1", "3"):
        assert sums(run(["./musl", "3", workers], conv).stdout) == expected


def test_archive_is_what_ar_lists(conv):
    ar = compiler("ar")
    assert run([ar, "t", "libconv.a"], conv).stdout.split() == ["conv.o", "conv_pool.o"]
    run([ar, "x", "--output", str(conv / "sub"), "libconv.a"], conv) if (
        conv / "sub"
    ).mkdir() else None
    index = run([compiler("nm"), "-s", "libconv.a"], conv).stdout
    assert "conv_forward in conv.o" in index and "conv_pool_start in conv_pool.o" in index


def test_two_bundles_in_one_program(conv, tmp_path):
    program = cg.parse("Y[n,k] = sum(c: X[n,c]*W[k,c])", X=(2, 5), W=(3, 5))
    export(program, tmp_path, name="dense", target="x86-64-v3" if _x86() else None)
    (tmp_path / "both.c").write_text(
        '#include <stdio.h>\n#include "conv.h"\n#include "dense.h"\n'
        "int main(void) {\n  void *a[8], *b[8];\n"
        "  if (conv_open(a) || dense_open(b)) return 1;\n"
        '  printf("%d %d\\n", (int)(conv_packed_bytes(b) < 0), (int)(dense_packed_bytes(b) > 0));\n'
        "  return 0;\n}\n"
    )
    run(
        [compiler("gcc"), *STRICT, f"-I{conv}", "both.c", str(conv / "libconv.a"), "libdense.a",
         "-lpthread", "-o", "both"],
        tmp_path,
    )  # fmt: skip
    assert run(["./both"], tmp_path).stdout.split() == ["1", "1"]


def _x86() -> bool:
    return target("native").isa == "x86-64"


def test_find_package_and_pkg_config(conv, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.10)\nproject(user C)\nfind_package(conv CONFIG REQUIRED)\n"
        f'foreach(kind conv shared)\n  add_executable(user_${{kind}} "{conv}/main.c")\n'
        "  target_link_libraries(user_${kind} PRIVATE conv::${kind})\nendforeach()\n"
    )
    cmake = compiler("cmake")
    run([cmake, "-S", ".", "-B", "made", f"-DCMAKE_PREFIX_PATH={conv}"], tmp_path)
    run([cmake, "--build", "made"], tmp_path)
    one = run(["made/user_conv"], tmp_path).stdout
    assert one == run(["made/user_shared"], tmp_path).stdout
    flags = run(
        [compiler("pkg-config"), "--cflags", "--libs", str(conv / "lib/pkgconfig/conv.pc")],
        tmp_path,
    )
    assert "-lconv" in flags.stdout and "-I" in flags.stdout
    run([compiler("gcc"), str(conv / "main.c"), *flags.stdout.split(), "-o", "packaged"], tmp_path)


@pytest.fixture(scope="module")
def fat(tmp_path_factory):
    if not _x86():
        pytest.skip("needs an x86-64 machine")
    folder = tmp_path_factory.mktemp("fat")
    program = cg.parse(CONV, **CONV_SHAPES)
    export(program, folder, name="conv", target=["x86-64-v2", "x86-64-v3", "x86-64-v4"])
    return folder


def test_doors_ask_for_no_instructions_before_open(tmp_path):
    """A door that used AVX would die on the machines that `open` is to refuse."""
    export(cg.parse(CONV, **CONV_SHAPES), tmp_path, name="conv", target="x86-64-v4")
    text = run([compiler("objdump"), "-d", "--no-show-raw-insn", "conv.o"], tmp_path).stdout
    wide = {}
    for block in text.split("\n\n"):
        name = re.search(r"<([^>]*)>:", block)
        if name:
            wide[name[1]] = bool(re.search(r"%[yz]mm|\tv[a-z0-9]+ .*%xmm|\tvzero", block))
    assert any(wide.values()) and not [door for door in DOORS if wide[f"conv_{door}"]]


DOORS = {
    "open", "open_level", "abi_version", "context_bytes", "error_text", "target", "packed_bytes",
    "workspace_bytes", "saved_bytes", "pack", "forward", "backward", "pack_checked",
    "forward_checked", "backward_checked", "weight_pointers",
}  # fmt: skip


@pytest.mark.full
def test_other_processors_pick_a_level_or_are_refused(fat, expected):
    qemu = compiler("qemu-x86_64")
    link = ["main.c", "libconv.a", "-lpthread"]
    run([compiler("gcc"), "-static", *STRICT, *link, "-o", "still"], fat)
    for cpu, level in (("Nehalem", "x86-64-v2"), ("max", "x86-64-v3")):
        text = run([qemu, "-cpu", cpu, "./still"], fat).stdout
        assert f"for {level}\n" in text and len(sums(text)) == len(expected)
    old = subprocess.run(
        [qemu, "-cpu", "qemu64", "./still"], cwd=fat, capture_output=True, text=True, check=False
    )
    assert old.returncode == 1 and "processor lacks instructions" in old.stderr


@pytest.mark.full
def test_example_is_clean_under_valgrind_and_sanitizer(tmp_path):
    program = cg.parse(CONV, **CONV_SHAPES)
    export(program, tmp_path, name="conv", target="x86-64-v3")
    run([compiler("gcc"), "-g", "main.c", "libconv.a", "-lpthread", "-o", "plain"], tmp_path)
    options = ["--error-exitcode=9", "--leak-check=full", "-q"]
    run([compiler("valgrind"), *options, "./plain", "4"], tmp_path)
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
    run(
        [compiler("gcc"), "-g", *sanitize, "main.c", "libconv.a", "-lpthread", "-o", "asan"],
        tmp_path,
    )
    run(["./asan", "4", "2"], tmp_path)
