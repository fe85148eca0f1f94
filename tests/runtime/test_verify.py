"""Certificates: every claim holds for what convgen makes, and fails for what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from convgen.__main__ import cli
from convgen.backends.protocol import digest_of
from convgen.errors import DataError
from convgen.interop.aot.export import export
from convgen.layers.activation import Softmax
from convgen.layers.convolution import Conv2d
from convgen.layers.normalization import BatchNorm2d
from convgen.layers.pooling import MaxPool2d
from convgen.passes import pipeline
from convgen.runtime import cache, checks, machine, verify
from convgen.runtime.build import build_program
from convgen.runtime.kernel import compile
from convgen.symbolic.derive import grad, split
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Origin


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVGEN_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def claims(certificate):
    return {check.claim: check.passed for check in certificate.checks}


LAYER = Conv2d(6, 8, 3, stride=2, padding=1, groups=2).program((3, 6, 14, 17))
ALL = {"writes": True, "bounds": True, "gradient": True, "loops": True, "machine code": True}


@pytest.mark.parametrize("program", [LAYER, grad(LAYER, ["X"])], ids=["forward", "gradient"])
def test_every_claim_of_a_convolution(program):
    certificate = compile(program).certificate()
    assert claims(certificate) == ALL
    facts = {c.claim: c.facts for c in certificate.checks}
    assert facts["gradient"]["arithmetic"] == "exact" and facts["gradient"]["difference"] == 0
    assert facts["gradient"]["pieces"] >= 4  # residue classes of stride 2 in two dimensions
    rows = facts["machine code"]["results"].values()
    assert all(r["elements"] >= 32 and r["error"] < 1e-6 for r in rows)
    small = facts["machine code"]["small_results"].values()
    assert all(r["elements"] == r["of"] and r["error"] < 1e-6 for r in small)
    assert facts["bounds"]["statements_proved"] > 20
    assert json.loads(json.dumps(certificate.as_json())) == certificate.as_json()


@pytest.mark.parametrize(
    "program",
    [
        Softmax().program((4, 9)),
        BatchNorm2d(4).program((3, 4, 5, 6)),
        grad(MaxPool2d(3, stride=2, padding=1).program((2, 3, 9, 8))),
        split(Softmax().program((4, 9)))[1],
    ],
    ids=["softmax", "batch norm", "max pool gradient", "softmax backward"],
)
def test_every_claim_of_other_layers(program):
    certificate = compile(program).certificate()
    assert claims(certificate) == ALL, str(certificate)


def test_what_is_not_polynomial_is_checked_in_fifty_digits():
    check = checks.check_gradient(p := Softmax().program((4, 9)), checks.small_of(p))
    assert check.passed and check.facts["arithmetic"] == "50 digits"
    assert 0 <= check.facts["difference"] <= 1e-30


def test_a_second_order_gradient_is_certified():
    layer = parse("Y[y] = sum(r: X[2*y + r] * W[r])", X=(9,), W=(3,))
    twice = grad(grad(layer, ["W"]), ["X"])
    assert claims(compile(twice).certificate()) == ALL


def test_the_same_kernel_has_the_same_certificate_and_keeps_it():
    kernel = compile(LAYER)
    first, second = kernel.certificate(), kernel.certificate()
    assert first.as_json() == second.as_json()
    assert verify.stored_certificate(first.key) == first.as_json()
    assert "passed; integer proof" in str(first)


def test_an_own_schedule_is_checked_with_its_factors():
    layer = parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=(64, 48), W=(40, 48))
    kernel = compile(layer, schedule="split(n, 8); reorder(n_out, k, c, n_in); unroll(n_in)")
    check = next(c for c in kernel.certificate().checks if c.claim == "loops")
    assert check.passed and check.facts["own_schedule"] == 0.0
    assert "X[8, 3]" in check.at[0]


def test_small_members_have_every_piece():
    for mode in ("zeros", "reflect", "circular"):
        layer = Conv2d(4, 8, 3, stride=3, padding=2, dilation=2, padding_mode=mode)
        program = layer.program((4, 4, 30, 31))
        small = checks.small_of(program)
        pieces = [checks.piece_counts(grad(p)) for p in (program, small.base)]
        assert pieces[0] == pieces[1]
        assert checks.cost(small.base) < 100_000


# --------------------------------------------------------------------------------- mutants


def wrong(program, old, new):
    """A program whose text has one thing changed, with the origin of the right one."""
    text = str(program)
    assert old in text
    return replace(parse(text.replace(old, new)), origin=program.origin)


def test_mutant_gradient_formula():
    right = grad(LAYER, ["W"])
    for old, new in (("2*y + r - 1", "2*y + r"), ("2*x + s", "x + s"), ("dY[n, 4", "-dY[n, 4")):
        mutant = wrong(right, old, new)
        assert checks.check_gradient(mutant, checks.small_of(right)).passed is False
    assert checks.check_gradient(right, checks.small_of(right)).passed


def test_mutant_derivation(monkeypatch):
    """A derivation that goes wrong everywhere is caught by the dual numbers."""
    layer = parse("Y[y] = sum(r: X[2*y + r - 1] * W[r]) for y < 6", X=(12,), W=(3,))

    def careless(program, wrt=None, *, flip=False):
        found = grad(program, wrt, flip=flip)
        if "dX" not in [t.name for t in found.outputs]:
            return found
        text = str(found).replace("W[1]", "W[0]")
        return replace(parse(text), origin=Origin("grad", program, tuple(wrt or "XW"), flip))

    assert checks.check_gradient(layer, checks.small_of(layer)).passed
    monkeypatch.setattr(checks, "grad", careless)
    assert checks.check_gradient(layer, checks.small_of(layer)).passed is False


def test_mutant_loops(monkeypatch):
    """A schedule that drops an iteration is caught by the interpreter."""
    staged = pipeline.build_stages

    def careless(kernel, schedule, target):
        found = staged(kernel, schedule, target)
        nest = found.scheduled.phases[0].body[-1]
        loop = next(lp for lp in nest.loops if lp.extent > 1)
        short = replace(
            nest,
            loops=tuple(
                replace(lp, extent=lp.extent - 1) if lp is loop else lp for lp in nest.loops
            ),
        )
        phase = replace(
            found.scheduled.phases[0], body=(*found.scheduled.phases[0].body[:-1], short)
        )
        scheduled = replace(found.scheduled, phases=(phase, *found.scheduled.phases[1:]))
        return replace(found, scheduled=scheduled)

    layer = parse("Y[n] = sum(c: X[n, c])", X=(16, 8))
    small, built = checks.small_of(layer), build_program(layer)
    given = (layer, small, "split(n, 4)", built.target, True)
    assert checks.check_loops(*given).passed
    monkeypatch.setattr(checks.pipeline, "build_stages", careless)
    assert checks.check_loops(*given).passed is False


def test_a_step_that_copies_its_state_at_the_end():
    """What is checked is the kernel as it was built, its updates included."""
    text = "state P: f32[300]\ntensor G: f32[300]\nQ[i] = P[299 - i] - G[i] / 8\nupdate P <- Q"
    kernel = compile(parse(text))
    assert ".update" in str(kernel.schedule)
    assert claims(kernel.certificate()) == ALL


@pytest.mark.parametrize(
    "old, new", [("2*y", "y"), ("r - 1", "r"), ("* W[k, c, r, s]", "* W[k, c, s, r]")]
)
def test_mutant_machine_code(old, new):
    """Machine code of another formula is not within the bound."""
    program = Conv2d(3, 4, 3, stride=2, padding=1).program((2, 3, 12, 14))
    program = replace(program, origin=None)
    text = str(program).replace("]   for", "]    for")
    built = build_program(program)
    other = parse(text.replace(old, new) + ("" if " for " in text else ""))
    assert machine.check_machine(program, built, signed=True, exact=True).passed
    assert machine.check_machine(other, built, signed=True, exact=True).passed is False


def test_mutant_machine_code_at_a_border():
    """Code that is wrong at one element only is found by comparing every element of a member."""
    member = parse("Y[y] = sum(r: X[y + r - 1] * W[r]) for y < 9", X=(9,), W=(3,))
    other = parse(
        "output Y: f32[9]\nY[y] = sum(r: X[y + r - 1] * W[r]) for y < 7\n"
        "Y[7] = X[6] * W[0] + X[7] * W[1]\nY[8] = X[7] * W[0] + X[8] * W[1]",
        X=(9,), W=(3,),
    )  # fmt: skip
    built = build_program(member)
    for program, wanted in ((member, True), (other, False)):
        found = machine._every_element(member, built, True, "exact", 0)
        assert found["Y"]["elements"] == found["Y"]["of"] == 9 and found["Y"]["error"] < 1e-6
        samples = machine._Samples(program, machine.random_arrays(member, True, 0), "exact", 10**6)
        given = machine.random_arrays(member, True, 0)
        array = machine.run_built(built, given, 1)["Y"]
        row = samples.compare(array, "Y", ((y,) for y in range(9)))
        assert (row["error"] <= row["bound"]) is wanted


def test_samples_meet_every_piece():
    program = grad(LAYER, ["X"])
    seen = set(machine._places(program, "dX"))
    pieces = program.stages[-1].pieces
    classes = {tuple(i.constant % 2 for i in p.outs[0].index[2:]) for p in pieces}
    assert classes <= {(h % 2, w % 2) for _, _, h, w in seen} and len(classes) == 4


def test_mutant_writes_and_bounds():
    twice = parse("Y[i] = X[i]", X=(4,))
    stage = twice.stages[0]
    mutant = replace(twice, stages=(replace(stage, pieces=stage.pieces * 2),))
    check = checks.check_writes(mutant)
    assert check.passed is False and "written twice" in check.facts["error"]


# ----------------------------------------------------------------------------------- verify


def run(*arguments):
    return CliRunner().invoke(cli, ["verify", *arguments])


def test_verify_a_sound_cache():
    kernel = compile(LAYER)
    kernel.certificate()
    compile(parse("Y[i] = 2 * X[i]", X=(8,)))
    found = json.loads(run("--json").output)
    assert sorted(f["state"] for f in found) == ["sound", "sound"]
    assert [f["certificate"] is not None for f in found].count(True) == 1
    result = run("--certify")
    assert result.exit_code == 0 and "2 checked: 2 sound" in result.output


@pytest.mark.parametrize("place", [-1, 60, 20])
def test_verify_names_damage_and_builds_again(own_cache, place):
    program = parse("Y[i] = 3 * X[i] + 1", X=(8,))
    key = build_program(program).key
    path = own_cache / f"{key}.record"
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    (finding,) = verify.verify_cache()
    assert finding.damage.startswith("its digest does not fit")
    if place == 60:  # in the header: what it was made from cannot be believed
        assert finding.state == "removed" and not path.exists()
    else:
        assert finding.state == "rebuilt" and cache.load(key) is not None
        assert next(iter(verify.verify_cache())).state == "sound"


def test_verify_rebuilds_from_the_certificate(own_cache):
    kernel = compile(parse("Y[i] = 3 * X[i] + 1", X=(8,)))
    key = kernel.certificate().key
    (own_cache / f"{key}.record").write_bytes(b"")
    (finding,) = verify.verify_cache()
    assert (finding.state, finding.certificate["passed"]) == ("rebuilt", True)
    assert run().exit_code == 0


def test_verify_renews_a_damaged_certificate(own_cache):
    key = compile(parse("Y[i] = 3 * X[i]", X=(8,))).certificate().key
    (own_cache / f"{key}.certificate").write_bytes(b"nothing")
    (finding,) = verify.verify_cache()
    assert (finding.state, finding.damage) == ("sound", "its certificate was damaged")
    assert verify.stored_certificate(key)["passed"]


def test_verify_leaves_what_other_versions_made(monkeypatch):
    compile(parse("Y[i] = 3 * X[i]", X=(8,)))
    monkeypatch.setattr(cache, "sources_digest", lambda: "another")
    (finding,) = verify.verify_cache(certify_all=True)
    assert finding.state == "old"


def test_facts_that_were_changed_are_not_believed(own_cache):
    """A record with a right digest and another program under the key is not what the key says."""
    key = build_program(parse("Y[i] = 3 * X[i]", X=(8,))).key
    record = cache.load(key)
    facts = {**record.facts, "made_from": {**record.facts["made_from"], "program": "program p"}}
    cache.store(key, cache.Record(facts, record.blobs))
    (finding,) = verify.verify_cache()
    assert finding.state == "old"


# ---------------------------------------------------------------------------------- bundles


def bundle(folder):
    """A folder as an export leaves it."""
    files = {"add.o": b"object", "include/add.h": b"header"}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    facts = {p: {"bytes": len(d), "sha256": digest_of(d)} for p, d in files.items()}
    (folder / "MANIFEST.json").write_text(json.dumps({"name": "add", "files": facts}))
    (folder / "libadd.so").write_bytes(b"library")
    library = {"bytes": 7, "sha256": digest_of(b"library")}
    (folder / "libadd.so.json").write_text(json.dumps(library))


def test_verify_a_bundle(tmp_path):
    bundle(tmp_path)
    result = run(str(tmp_path))
    assert result.exit_code == 0 and "3 checked: 3 sound" in result.output
    (tmp_path / "libadd.so").write_bytes(b"Library")
    (tmp_path / "add.o").unlink()
    result = run(str(tmp_path), "--json")
    assert result.exit_code == 1
    states = {f["key"]: f["damage"] for f in json.loads(result.output)}
    assert states == {
        "add.o": "the file is missing",
        "include/add.h": "",
        "libadd.so": "its digest does not fit",
    }


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    place = tmp_path / "bundle"
    bundle(place)
    (tmp_path / "secret").write_bytes(b"x")
    facts = {"../secret": {"bytes": 1, "sha256": digest_of(b"x")}}
    (place / "MANIFEST.json").write_text(json.dumps({"name": "add", "files": facts}))
    found = {f.key: f.damage for f in verify.verify_bundle(place)}
    assert "outside the folder" in found["../secret"]
    with pytest.raises(DataError, match="no bundle"):
        list(verify.verify_bundle(tmp_path))


def test_an_exported_bundle_is_sound(tmp_path):
    program = parse("Y[i] = 3 * X[i]", X=(8,))
    compile(program).certificate()
    export(program, tmp_path / "out", name="triple")
    states = {finding.state for finding in verify.verify_bundle(tmp_path / "out")}
    assert states == {"sound"}


def test_the_loops_that_are_checked_are_those_of_the_rewritten_program():
    """The kernel's stages came from a rewrite, the loops beside it from the program as written: its
    own schedule fitted no member."""
    text = "program m\ntensor X: f32[512, 32, 16]\nM[c] = sum(n, w: X[n, w, c]) / 16384\n"
    layer = parse(text + "V[c] = sum(n, w: (X[n, w, c] - M[c])**2) / 16384")
    built = build_program(layer)
    assert "M_part" in built.schedule
    small = checks.small_of(layer)
    found = checks.check_loops(layer, small, built.schedule, built.target, False)
    assert found.passed and "M_part" in found.facts["schedule_at_small_size"]
    assert "own_schedule" in found.facts
