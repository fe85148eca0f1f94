"""Certificates: what was checked of a compiled kernel and how; and the re-check of a cache.

A certificate's claims, each with its method and the sizes it was done at:

writes        every element of every tensor is written exactly once (integer proof, full size)
bounds        every access of the formula and of the code is in bounds (from the domains, full size)
gradient      the derived gradient is the derivative (dual numbers; exact or 50 digits; small size)
loops         scheduled loops and flat statements equal the naive loops (small size)
machine code  results within the stated error of exact arithmetic (every element at a small size,
              samples at full size)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convgen.backends.protocol import digest_of
from convgen.errors import ConvgenError, DataError, TargetError, UserError
from convgen.passes import pipeline
from convgen.runtime import cache
from convgen.runtime.build import Built, build_program, key_of, lowered
from convgen.runtime.checks import (
    Check,
    check_bounds,
    check_gradient,
    check_loops,
    check_writes,
    rebuilt,
    small_of,
)
from convgen.runtime.layouts import arranged
from convgen.runtime.machine import check_machine
from convgen.symbolic.evaluate import is_rational
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Origin, Program
from convgen.target import Target

_FORMAT = 1


@dataclass(frozen=True)
class Certificate:
    """What was checked of a kernel. ``print`` it for people, `as_json` is the document.

    kernel, target  names; key: of the cached object; digest: SHA-256 of the object code
    program         the formula as text; schedule: as applied
    """

    kernel: str
    target: str
    key: str
    digest: str
    program: str
    schedule: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """No claim is refuted."""
        return all(check.passed is not False for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values; the same for the same kernel every time."""
        plain = {k: v for k, v in vars(self).items() if k != "checks"}
        checks = [check.as_json() for check in self.checks]
        return {"format": _FORMAT, "passed": self.passed, **plain, "checks": checks}

    def __str__(self) -> str:
        lines = [f"certificate of kernel {self.kernel} for {self.target}"]
        for check in self.checks:
            word = {True: "passed", False: "FAILED", None: "not checked"}[check.passed]
            lines.append(f"{check.claim}: {word}; {check.how}")
            lines += [f"  at {place}" for place in check.at]
            for name, value in (check.facts or {}).items():
                text = value if isinstance(value, str) else json.dumps(value)
                if "\n" not in text and len(text) <= 200:
                    lines.append(f"  {name}: {text}")
        return "\n".join(lines)


def certify(program: Program, built: Built, *, schedule_given: bool = False) -> Certificate:
    """Check a kernel and keep the certificate beside its cached object.

    program is the one `built` was made from, sizes bound; `schedule_given` says that the schedule
    was the user's. Never raises for a claim that fails: the certificate says so.
    """
    small = small_of(program)
    kernel = arranged(lowered(program, built.made_from["in_place"]), built.layouts)
    stages = pipeline.build_stages(kernel, built.schedule or None, built.target)
    signed = small is None or small.signed
    member = None if small is None else rebuilt(program, small.base)
    exact = is_rational(program) if small is None else small.exact
    checks = (
        check_writes(program),
        check_bounds(program, stages),
        check_gradient(program, small),
        check_loops(
            program, small, built.schedule, built.target, schedule_given, layouts=built.layouts
        ),
        check_machine(program, built, signed=signed, exact=exact, member=member),
    )
    made = Certificate(
        kernel=built.name,
        target=built.target.name,
        key=built.key,
        digest=digest_of(built.object),
        program=str(program),
        schedule=built.schedule,
        checks=checks,
    )
    if built.key:
        facts = {"certificate": made.as_json(), "made_from": dict(built.made_from)}
        cache.store(built.key, cache.Record(facts, {}), cache.CERTIFICATE)
    return made


def stored_certificate(key: str) -> Mapping[str, Any] | None:
    """The certificate kept for a key, as plain values; None without one that verifies."""
    record = cache.load(key, cache.CERTIFICATE)
    return None if record is None else record.facts["certificate"]


# ---------------------------------------------------------------------------------------------
# A whole cache


@dataclass(frozen=True)
class Finding:
    """What became of one key of the cache. state:

    sound      the record verifies, and so does its certificate, done again if there was one
    rebuilt    it was damaged and has been built again
    removed    it was damaged beyond reading and is gone; its next use builds it
    damaged    a file of a bundle is not what its manifest says, or is not there
    old        made by another version of convgen or of LLVM, or from changed sources: never used
    refuted    a claim of its certificate fails now
    """

    key: str
    kernel: str
    state: str
    damage: str = ""
    certificate: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return dict(vars(self))

    def __str__(self) -> str:
        text = f"{self.key} {self.kernel or '?'}: {self.state}"
        if self.damage:
            text += f" ({self.damage})"
        if self.certificate is not None:
            claims = self.certificate["checks"]
            done = [c["claim"] for c in claims if c["passed"]]
            failed = [c["claim"] for c in claims if c["passed"] is False]
            text += f"; checked {', '.join(done) or 'nothing'}"
            text += f"; FAILED {', '.join(failed)}" if failed else ""
        return text


def verify_cache(*, certify_all: bool = False) -> Iterator[Finding]:
    """Re-check every record of the cache: its digest, that it is what its key says, and its
    certificate, done again where there is one (everywhere with `certify_all`). Damaged records are
    built again from what can still be read of them, which the key itself proves right. DataError
    where there is no cache: it is off, or its folder cannot be used.
    """
    cache.require_folder()
    for key in cache.keys():
        yield _verify(key, certify_all)


def _verify(key: str, certify_all: bool) -> Finding:
    record = cache.load(key)
    wanted = certify_all or cache.has(key, cache.CERTIFICATE)
    if record is None:
        return _repair(key, wanted)
    facts = record.facts
    name, made_from = str(facts.get("name", "")), facts.get("made_from")
    if "made_from" not in facts:  # the thread pool: no kernel, nothing but its digest to check
        return Finding(key, name, "sound")
    if not _proves(key, made_from):
        return Finding(key, name, "old")
    damage = ""
    if cache.has(key, cache.CERTIFICATE) and stored_certificate(key) is None:
        damage = "its certificate was damaged"
    if not wanted:
        return Finding(key, name, "sound")
    return _certified(key, made_from, "sound", damage)


def _repair(key: str, wanted: bool) -> Finding:
    """A record that does not verify: built again from its facts or from its certificate's."""
    had = cache.has(key)
    damage = "its digest does not fit" if had else "its object is missing"
    kept = cache.load(key, cache.CERTIFICATE)
    sources = [cache.unverified_facts(key), None if kept is None else kept.facts]
    for facts in sources:
        made_from = None if facts is None else facts.get("made_from")
        if _proves(key, made_from):
            cache.remove(key)
            if wanted:
                return _certified(key, made_from, "rebuilt", damage)
            built = _built(made_from)[1]
            return Finding(key, built.name, "rebuilt", damage)
    cache.remove(key)
    cache.remove(key, cache.CERTIFICATE)
    name = ""
    if kept is not None:
        name = kept.facts["certificate"]["kernel"]
    return Finding(key, name, "removed", damage + ", nor can what it was made from be read")


def _certified(key: str, made_from: Any, state: str, damage: str) -> Finding:
    try:
        program, built = _built(made_from)
        given = made_from["schedule"] is not None
        certificate = certify(program, built, schedule_given=given)
    except ConvgenError as error:
        return Finding(key, "", "refuted", f"{type(error).__name__}: {error}")
    state = state if certificate.passed else "refuted"
    return Finding(key, built.name, state, damage, certificate.as_json())


def _built(made_from: Mapping[str, Any]) -> tuple[Program, Built]:
    program = program_of(made_from)
    target = Target(**made_from["target"])
    schedule = made_from["schedule"]
    built = build_program(
        program, target, schedule, in_place=made_from["in_place"], layout=made_from["layouts"]
    )
    return program, built


def program_of(made_from: Mapping[str, Any]) -> Program:
    """The program, with its origin, that facts of a record speak of."""
    program = parse(made_from["program"])
    origin = made_from["origin"]
    if origin is None:
        return program
    from_ = program_of(origin)
    return replace(
        program, origin=Origin(origin["kind"], from_, tuple(origin["wrt"]), origin["flip"])
    )


def _proves(key: str, made_from: Any) -> bool:
    """True when this version makes that key from these facts: then the facts are what they were."""
    try:
        return key_of(made_from, Target(**made_from["target"])) == key
    except (TypeError, KeyError, AttributeError, TargetError, UserError):
        return False


# ---------------------------------------------------------------------------------------------
# Bundles


def verify_bundle(folder: Path) -> Iterator[Finding]:
    """Re-check the files of an exported bundle against its manifest, and what certificates its
    kernels carry. Nothing is built again: that is `convgen build`.

    Raises DataError when the folder has no manifest that can be read.
    """
    manifest = folder / "MANIFEST.json"
    try:
        facts = json.loads(manifest.read_text())
        files: dict[str, Any] = dict(facts["files"])
        name = str(facts["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "no bundle: its manifest cannot be read", where=str(manifest), got=str(error)
        ) from None
    for path, wanted in sorted({**files, **_linked(folder)}.items()):
        yield Finding(path, name, *_file_state(folder, path, wanted))
    for level in facts.get("targets", []):
        for kernel in level["kernels"]:
            certificate = kernel.get("certificate")
            if certificate is not None:
                state = "sound" if certificate["passed"] else "refuted"
                yield Finding(level["name"], kernel["name"], state, certificate=certificate)


def _linked(folder: Path) -> dict[str, Any]:
    """The shared libraries linked on the spot, whose facts lie beside them."""
    found: dict[str, Any] = {}
    for path in folder.glob("*.so.json"):
        try:
            found[path.name.removesuffix(".json")] = json.loads(path.read_text())
        except (OSError, ValueError):
            found[path.name.removesuffix(".json")] = {}
    return found


def _file_state(folder: Path, path: str, wanted: Mapping[str, Any]) -> tuple[str, str]:
    place = (folder / path).resolve()
    if not place.is_relative_to(folder.resolve()):
        return "damaged", "the manifest names a file outside the folder"
    try:
        data = place.read_bytes()
    except OSError:
        return "damaged", "the file is missing"
    if (len(data), digest_of(data)) != (wanted.get("bytes"), wanted.get("sha256")):
        return "damaged", "its digest does not fit"
    return "sound", ""
