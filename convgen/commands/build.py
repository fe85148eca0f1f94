"""`convgen build` and `convgen verify`: files for other programs, and whether they still hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from convgen.commands.options import JSON, example, sized
from convgen.commands.subjects import resolve

TARGETS = (
    "native, x86-64-v2, x86-64-v3, x86-64-v4 or aarch64; x86-64: AVX2 and AVX-512 in one. "
    "Repeatable for several levels in one bundle."
)


@click.command(epilog=example("convgen build zoo:lenet5 --input 32,1,28,28 -o out --name lenet5"))
@click.argument("subject")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder.")
@click.option("--name", help="Prefix of every symbol and file.")
@click.option("--target", "targets", multiple=True, help=TARGETS)
@click.option("--weights", type=click.Choice(["file", "embedded", "argument"]))
@click.option("--backward/--no-backward", default=True, show_default=True)
@click.option("--loss", help="With --optimizer: add a training step, such as CrossEntropyLoss().")
@click.option("--optimizer", help="Such as 'SGD(momentum=0.9)'.")
@sized
@JSON
def build(
    subject: str,
    output: Path,
    name: str | None,
    targets: tuple[str, ...],
    weights: str | None,
    backward: bool,
    loss: str | None,
    optimizer: str | None,
    shapes: tuple[str, ...],
    input_shape: str | None,
    as_json: bool,
) -> None:
    """Write files that any C, C++ or Python program can use: object, libraries, header, example.

    SUBJECT is a formula with --shape, a layer such as 'Conv2d(3, 8, 3)' with --input, FILE.py:NAME
    (that file is run), zoo:NAME[,key=value], or a saved network.
    """
    from convgen.interop.aot.command import build as run

    found = resolve(subject, shapes, input_shape)
    made = run(
        found,
        subject,
        output,
        name=name,
        targets=targets,
        weights=weights,
        backward=backward,
        loss=loss,
        optimizer=optimizer,
    )
    if as_json:
        facts = {"folder": str(made.folder), "name": made.name, "files": made.files}
        click.echo(json.dumps(facts | {"object_bytes": made.object_bytes, "notes": made.notes}))
        return
    click.echo(str(made))


@click.command(epilog=example("convgen verify --certify"))
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path), metavar="[FOLDER]...")
@click.option("--certify", is_flag=True, help="Make a certificate for every kernel of the cache.")
@JSON
def verify(bundles: tuple[Path, ...], certify: bool, as_json: bool) -> None:
    """Re-check the cache of compiled kernels, or the bundles in folders that `build` wrote.

    In the cache: digests, and certificates where there are some; damaged records are named and
    built again. In a bundle: every file against the manifest. The status is 1 when a claim of a
    certificate fails or a bundle is damaged.
    """
    from itertools import chain

    from convgen.runtime.verify import verify_bundle, verify_cache

    found: list[Any] = []
    places = chain(*map(verify_bundle, bundles)) if bundles else verify_cache(certify_all=certify)
    for finding in places:
        found.append(finding)
        if not as_json:
            click.echo(str(finding))
    states = [finding.state for finding in found]
    if as_json:
        click.echo(json.dumps([finding.as_json() for finding in found], indent=1))
    else:
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        click.echo(f"{len(found)} checked" + (f": {counts}" if counts else ""))
    if {"refuted", "damaged"} & set(states):
        sys.exit(1)
