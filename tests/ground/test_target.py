from dataclasses import replace
from pathlib import Path

import pytest

import convgen
from convgen.errors import TargetError
from convgen.target import _cache_sizes, level_of, names, runs_here, target
from convgen.types import bool_, f32, f64, u8

ROWS = {
    "x86-64-v2": (128, 16, False),
    "x86-64-v3": (256, 16, True),
    "x86-64-v4": (512, 32, True),
    "aarch64": (128, 32, True),
}


@pytest.mark.parametrize("name", ROWS)
def test_levels(name):
    found = target(name)
    assert (found.vector_bits, found.vector_registers, found.has_fma) == ROWS[name]
    assert found.lanes(f32) == 2 * found.lanes(f64) == found.lanes(u8) // 4
    assert found.lanes(bool_) == found.lanes(u8)
    assert found.cpu_model == ""
    assert target(found) is found


def test_native_is_one_of_the_levels_and_runs_here():
    here = target("native")
    assert here.name in ROWS
    assert here.cores >= 1
    assert here.l1 >= 8 * 1024
    assert runs_here(here)
    assert not runs_here(target("aarch64" if here.isa == "x86-64" else "x86-64-v2"))


def test_equality_forgets_cores_and_key_says_the_rest():
    here = target("native")
    assert replace(here, cores=99) == here
    assert replace(here, cores=99).key() == here.key()
    assert replace(here, l2=1).key() != here.key()


def test_unknown_names_list_the_known():
    with pytest.raises(TargetError, match="one of native x86-64-v2 x86-64-v3 x86-64-v4 aarch64"):
        target("sparc")
    assert names()[0] == "native"


def test_level_needs_every_flag():
    v3 = "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave cx16 lahf_lm popcnt ssse3 sse4_1 sse4_2"
    assert level_of("x86-64", v3.split()) == "x86-64-v3"
    assert level_of("x86-64", v3.replace("fma ", "").split()) == "x86-64-v2"
    assert level_of("x86-64", (v3 + " avx512f avx512bw avx512cd avx512dq").split()) == "x86-64-v3"
    assert level_of("aarch64", []) == "aarch64"
    with pytest.raises(TargetError, match="without cx16"):
        level_of("x86-64", [])
    with pytest.raises(TargetError, match="riscv"):
        level_of("riscv", [])


def test_cache_sizes_are_read(tmp_path):
    for number, (kind, level, size) in enumerate(
        [("Data", "1", "48K"), ("Instruction", "1", "32K"), ("Unified", "2", "1M")]
    ):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, text in (("type", kind), ("level", level), ("size", size)):
            (folder / name).write_text(text + "\n")
    assert _cache_sizes(tmp_path) == {1: 48 * 1024, 2: 1024 * 1024}
    assert _cache_sizes(tmp_path / "missing") == {}


def test_the_face_hides_no_module():
    """A public name that is a module's name too would be one or the other, by order of import."""
    modules = {p.stem for p in Path(convgen.__file__).parent.iterdir()}
    assert not modules & set(convgen._PLACES)
