"""The command line: parse, call, print. Each command imports what it needs when it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from convgen.errors import ConvgenError, InternalError, UserError

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON value instead.")

_TARGETS = (
    "native, x86-64-v2, x86-64-v3, x86-64-v4 or aarch64; x86-64: AVX2 and AVX-512 in one. "
    "Repeatable for several levels in one bundle."
)


def _example(text: str) -> str:
    """An epilogue that shows one call, unwrapped."""
    return f"\b\nExample:\n  {text}"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="convgen")
def cli() -> None:
    """Write a layer as a formula; get its gradients, native kernels and networks that train."""


@cli.command(epilog=_example("CONVGEN_DEBUG=2 convgen knobs"))
@_JSON
def knobs(as_json: bool) -> None:
    """Show the environment variables, their values and what they do."""
    from dataclasses import asdict

    from convgen import knobs as declared

    found = declared.rows()
    if as_json:
        click.echo(json.dumps([asdict(row) for row in found], indent=1))
        return
    table = [(r.variable, r.value or "-", r.source, r.accepts, r.sentence) for r in found]
    _print_table(("variable", "value", "from", "accepts", "meaning"), table)


@cli.command(epilog=_example("convgen demo --seed 1 --output my-demo"))
@click.option("--mnist", type=click.Path(path_type=Path), help="Folder with MNIST's IDX files.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("convgen-demo"),
    show_default=True,
    help="Folder for pictures, weights and the checkpoint.",
)
@click.option("--epochs", type=click.IntRange(1), help="Default: 30, or 3 with MNIST.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Default: all cores.")
@click.option("--resume", type=click.Path(path_type=Path), help="A checkpoint to continue from.")
@_JSON
def demo(as_json: bool, **options: Any) -> None:
    """Train LeNet-5 on real handwritten digits, from formulas, and show every step."""
    from convgen.demo import run

    result = run(quiet=as_json, **options)
    if as_json:
        click.echo(json.dumps(result))


@cli.command(epilog=_example("convgen show 'Conv2d(3, 8, 3, stride=2)' --input 1,3,32,32"))
@click.argument("subject")
@click.option("--shape", "shapes", multiple=True, help="NAME=EXTENT,... of a formula's tensor.")
@click.option("--input", "input_shape", help="Shape of a layer's or network's input, with batch.")
@click.option("--wrt", multiple=True, help="Gradients to show (default: all). Repeatable.")
@click.option(
    "--form",
    type=click.Choice(["text", "unicode", "latex", "mathml", "numpy", "torch"]),
    default="text",
    show_default=True,
)
@_JSON
def show(
    subject: str,
    shapes: tuple[str, ...],
    input_shape: str | None,
    wrt: tuple[str, ...],
    form: str,
    as_json: bool,
) -> None:
    """Show a formula with its derived gradients, or a network's table.

    SUBJECT is a formula with --shape, a layer such as 'Conv2d(3, 8, 3)' with --input, FILE.py:NAME
    (that file is run), zoo:NAME[,key=value], or a saved network.
    """
    from convgen.layers.base import Layer
    from convgen.runtime import subject as subjects
    from convgen.symbolic.derive import grad
    from convgen.zoo import NETWORKS

    found = subjects.resolve(subject, shapes=shapes, input=input_shape, zoo=NETWORKS)
    if found.ran is not None:
        click.echo(f"ran {found.ran}", err=True)
    program = found.program
    if program is None and isinstance(found.module, Layer) and found.shape is not None:
        program = found.module.program(found.shape)
    if program is None:
        _show_network(found, as_json)
        return
    backward = grad(program, list(wrt) or None)
    texts = [_in_form(p, form) for p in (program, backward)]
    if as_json:
        click.echo(json.dumps({"program": texts[0], "gradient": texts[1]}))
        return
    click.echo("\n\n".join(texts))


@cli.command(epilog=_example("convgen report 'Conv2d(4, 8, 3, stride=2)' --input 1,4,16,16"))
@click.argument("subject")
@click.option("--shape", "shapes", multiple=True, help="NAME=EXTENT,... of a formula's tensor.")
@click.option("--input", "input_shape", help="Shape of a layer's or network's input, with batch.")
@click.option("--wrt", multiple=True, help="Gradients to show (default: all). Repeatable.")
@click.option(
    "--peak",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What `convgen bench peak --json` printed: adds the roofline.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
)
@_JSON
def report(
    subject: str,
    shapes: tuple[str, ...],
    input_shape: str | None,
    wrt: tuple[str, ...],
    peak: Path | None,
    output: Path,
    as_json: bool,
) -> None:
    """Write a page about SUBJECT: formula, gradients and their derivation, matrices, pictures,
    schedule, loops, machine code and costs. One file that loads nothing.

    SUBJECT is what `convgen show` takes.
    """
    from convgen.inspect.report import write_report
    from convgen.runtime import subject as subjects
    from convgen.zoo import NETWORKS

    found = subjects.resolve(subject, shapes=shapes, input=input_shape, zoo=NETWORKS)
    if found.ran is not None:
        click.echo(f"ran {found.ran}", err=True)
    what = found.program if found.program is not None else found.module
    assert what is not None
    facts = json.loads(peak.read_text(encoding="utf-8")) if peak is not None else None
    name = subject if found.program is not None else found.name
    write_report(what, output, name=name, shape=found.shape, wrt=wrt, peak=facts)
    size = output.stat().st_size
    if as_json:
        click.echo(json.dumps({"path": str(output), "bytes": size}))
        return
    click.echo(f"wrote {output}, {size / 1e6:.2f} MB")


def _in_form(program: Any, form: str) -> str:
    if form == "text":
        return str(program)
    return getattr(program, {"numpy": "to_numpy", "torch": "to_torch"}.get(form, form))()


def _show_network(found: Any, as_json: bool) -> None:
    from convgen.runtime.module import trace
    from convgen.runtime.table import memory_line, memory_of, rows_of

    graph = trace(found.module, [found.shape])
    rows, memory = rows_of(graph), memory_of(graph)
    totals = {
        "parameters": graph.parameter_count(),
        "multiply_adds": graph.multiply_adds() // max(found.shape[0], 1),
    }
    if as_json:
        click.echo(json.dumps({"name": found.name, **totals, "memory": memory, "layers": rows}))
        return
    cells = [
        (
            row["path"],
            row["layer"],
            "×".join(map(str, row["shape"])),
            f"{row['parameters']:,}" if row["parameters"] else "",
            f"{row['multiply_adds']:,}" if row["multiply_adds"] else "",
            _field(row),
        )
        for row in rows
    ]
    cells.append(("", "total", "", *(f"{v:,}" for v in totals.values()), ""))
    head = ("", "layer", "output", "parameters", "multiply-adds", "receptive field")
    _print_table(head, cells)
    click.echo(memory_line(memory))


@cli.command(epilog=_example("convgen build zoo:lenet5 --input 32,1,28,28 -o out --name lenet5"))
@click.argument("subject")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder.")
@click.option("--name", help="Prefix of every symbol and file.")
@click.option("--target", "targets", multiple=True, help=_TARGETS)
@click.option("--weights", type=click.Choice(["file", "embedded", "argument"]))
@click.option("--backward/--no-backward", default=True, show_default=True)
@click.option("--loss", help="With --optimizer: add a training step, such as CrossEntropyLoss().")
@click.option("--optimizer", help="Such as 'SGD(momentum=0.9)'.")
@click.option("--shape", "shapes", multiple=True, help="NAME=EXTENT,... of a formula's tensor.")
@click.option("--input", "input_shape", help="Shape of a layer's or network's input, with batch.")
@_JSON
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
    from convgen.runtime import subject as subjects
    from convgen.zoo import NETWORKS

    found = subjects.resolve(subject, shapes=shapes, input=input_shape, zoo=NETWORKS)
    if found.ran is not None:
        click.echo(f"ran {found.ran}", err=True)
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


@cli.command(epilog=_example("convgen verify --certify"))
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path), metavar="[FOLDER]...")
@click.option("--certify", is_flag=True, help="Make a certificate for every kernel of the cache.")
@_JSON
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


@cli.command(epilog=_example("convgen tune 'Conv2d(4, 8, 3)' --input 1,4,16,16 --search 4"))
@click.argument("subject")
@click.option("--shape", "shapes", multiple=True, help="NAME=EXTENT,... of a formula's tensor.")
@click.option("--input", "input_shape", help="Shape of a layer's input, with batch.")
@click.option("--wrt", multiple=True, help="Tune the gradients to these instead. Repeatable.")
@click.option("--search", "count", type=click.IntRange(1), default=8, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@_JSON
def tune(
    subject: str,
    shapes: tuple[str, ...],
    input_shape: str | None,
    wrt: tuple[str, ...],
    count: int,
    threads: int,
    as_json: bool,
) -> None:
    """Measure the cost model's best schedules of SUBJECT and keep the fastest.

    SUBJECT is a formula with --shape or a layer with --input. The schedules are printed as text
    that `convgen.compile(program, schedule=...)` takes; `search=` there finds the record again.
    """
    from convgen.layers.base import Layer
    from convgen.runtime import subject as subjects
    from convgen.runtime.tune import tune as run
    from convgen.symbolic.derive import grad

    found = subjects.resolve(subject, shapes=shapes, input=input_shape)
    program = found.program
    if program is None and isinstance(found.module, Layer) and found.shape is not None:
        program = found.module.program(found.shape)
    if program is None:
        raise UserError("a search needs one program", expected="a formula or a layer", got=subject)
    result = run(grad(program, list(wrt)) if wrt else program, count, threads=threads)
    if as_json:
        trials = [{"schedule": text, "seconds": taken} for text, taken in result.trials]
        click.echo(json.dumps({"recorded": result.recorded, "trials": trials}))
        return
    for text, taken in result.trials:
        click.echo(f"{taken * 1e3:9.3f} ms")
        click.echo("\n".join(f"    {line}" for line in text.splitlines()))


@cli.command(
    epilog=_example(
        "convgen audit mine.py:grad_w --of 'Conv2d(64, 128, 3, stride=2)' "
        "--input 8,64,56,56 --wrt W"
    )
)
@click.argument("function", metavar="FILE.py:FUNCTION")
@click.option("--of", "subject", required=True, help="The formula or layer, a SUBJECT.")
@click.option("--wrt", help="The input whose gradient it is; needed where there are several.")
@click.option("--shape", "shapes", multiple=True, help="NAME=EXTENT,... of a formula's tensor.")
@click.option("--input", "input_shape", help="Shape of a layer's input, with batch.")
@click.option("--training", is_flag=True, help="The layer as it is in training.")
@_JSON
def audit(
    function: str,
    subject: str,
    wrt: str | None,
    shapes: tuple[str, ...],
    input_shape: str | None,
    training: bool,
    as_json: bool,
) -> None:
    """Compare a hand-written gradient with the derived one, and name its fault.

    FUNCTION of FILE.py (that file is run) takes NumPy arrays or torch tensors: the inputs of the
    subject in their order, then the cotangent of its output; it returns the gradient to --wrt. It
    is called with small arrays. The status is 1 when it is wrong.
    """
    from convgen.inspect.audit import audit as check
    from convgen.inspect.audit.calling import function_in
    from convgen.layers.base import Layer
    from convgen.runtime import subject as subjects

    backward, ran = function_in(function)
    click.echo(f"ran {ran}", err=True)
    found = subjects.resolve(subject, shapes=shapes, input=input_shape)
    program = found.program
    if program is None and isinstance(found.module, Layer) and found.shape is not None:
        program = found.module.program(found.shape, training=training)
    if program is None:
        raise UserError(f"{found.name} is a network", expected="a formula or a layer", where="--of")
    result = check(backward, program, wrt)
    click.echo(json.dumps(result.as_json(), indent=1) if as_json else str(result))
    if not result.passed:
        sys.exit(1)


@cli.group()
def bench() -> None:
    """Measure this machine and the kernels convgen makes for it."""


@bench.command(epilog=_example("convgen bench peak --threads 2"))
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--dtype", type=click.Choice(["f32", "f64"]), default="f32", show_default=True)
@click.option("--seconds", type=click.FloatRange(0.05), default=0.5, show_default=True)
@_JSON
def peak(threads: int, dtype: str, seconds: float, as_json: bool) -> None:
    """Measure the rate of multiply-adds this machine reaches."""
    from dataclasses import asdict

    from convgen.bench.peak import measure_peak
    from convgen.types import dtype_of

    found = measure_peak(threads, dtype_of(dtype), seconds)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    click.echo(
        f"{found.gflops:.1f} GFLOP/s in {found.dtype} on {threads} thread{'s'[: threads > 1]}: "
        f"{found.chains} chains of {found.lanes} lanes, {found.target}, {found.cpu}; "
        f"memory {found.gigabytes_per_second:.1f} GB/s"
    )
    if found.fork_join_microseconds is not None:
        click.echo(f"fork and join: {found.fork_join_microseconds:.2f} µs")
    rows = [
        (b.level, b.kind, str(b.kilobytes), f"{b.gigabytes_per_second:.1f}")
        for b in found.bandwidth
    ]
    _print_table(("level", "kind", "KiB a thread", "GB/s"), rows)


@bench.command(epilog=_example("convgen bench conv --case vgg3_2 --pass forward --against torch"))
@click.option("--case", "names", multiple=True, help="A case by name, or all. Repeatable.")
@click.option(
    "--pass",
    "passes",
    multiple=True,
    type=click.Choice(["forward", "input", "weights"]),
    help="forward, or the gradient to the input or to the weights. Repeatable; default all.",
)
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    type=click.Choice(["nhwc", "nchw"]),
    help="Layout of the caller's arrays. Repeatable; default nhwc.",
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--dtype", type=click.Choice(["f32", "f64"]), default="f32", show_default=True)
@click.option("--against", multiple=True, type=click.Choice(["torch"]), help="A peer. Repeatable.")
@click.option("--seconds", type=click.FloatRange(0.05), default=1.0, help="Time for each kernel.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write rows to this file.")
def conv(
    names: tuple[str, ...],
    passes: tuple[str, ...],
    layouts: tuple[str, ...],
    threads: int,
    dtype: str,
    against: tuple[str, ...],
    seconds: float,
    file: Path | None,
) -> None:
    """Measure convolution kernels of well-known networks against the peak and against peers."""
    from convgen.bench import cases
    from convgen.bench import conv as kernels
    from convgen.types import dtype_of

    chosen = cases.cases(names)
    if file is not None and not file.parent.is_dir():
        raise UserError(f"there is no folder {file.parent}", where="--json")
    columns = ["case", "pass", "layout", "threads", "prepared", "GFLOP/s", "of peak", "ms"]
    columns += ["min..max", "peer", "peer GFLOP/s", "ratio", "error"]
    rows: list[Any] = []
    click.echo("  ".join(f"{c:>{_WIDTHS[i]}}" for i, c in enumerate(columns)))
    measured = kernels.measure(
        chosen,
        passes or cases.PASSES,
        layouts or ("nhwc",),
        threads=threads,
        dtype=dtype_of(dtype),
        against=against,
        seconds=seconds,
    )
    for row in measured:
        rows.append(row)
        click.echo("  ".join(f"{c:>{_WIDTHS[i]}}" for i, c in enumerate(_cells(row))))
    means = kernels.geometric_means(rows)
    for name, mean in means.items():
        click.echo(f"geometric mean of the ratio, {name}: {mean:.2f}")
    if any(row.share_of_peak > 1 for row in rows):
        click.echo(
            "above the peak: multiply-adds with the padding are counted and need not be carried "
            "out; without padding, the peak was read too low: measure again",
            err=True,
        )
    if file is not None:
        text = {"rows": [row.as_json() for row in rows], "geometric_means": means}
        file.write_text(json.dumps(text, indent=1) + "\n")
        click.echo(f"wrote {file}")


@bench.command("compile", epilog=_example("convgen bench compile --case res3_s2"))
@click.option("--case", default="vgg3_2", show_default=True, help="A case by name.")
@_JSON
def compile_cost(case: str, as_json: bool) -> None:
    """Measure import, and compiling a case with both gradients, cold and from the cache."""
    from dataclasses import asdict

    from convgen.bench import cases
    from convgen.bench.compiling import measure_cost

    found = measure_cost(cases.cases((case,))[0].name)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    click.echo(
        f"{case} with both gradients: cold {found.cold:.2f} s, from the cache "
        f"{found.warm * 1e3:.0f} ms, {found.object_bytes / 1024:.0f} KiB of code; "
        f"import convgen {found.imported:.2f} s"
    )


@bench.command(epilog=_example("convgen bench embed --seconds 5"))
@click.option("--seconds", type=click.FloatRange(0.05), default=2.0, show_default=True)
@_JSON
def embed(seconds: float, as_json: bool) -> None:
    """Measure what it costs to enter a kernel from C, Python and PyTorch."""
    from convgen.bench.embed import measure_doors

    try:
        from convgen.interop.torch import function
    except ImportError:
        function = None  # no PyTorch: its doors are left out
    found = measure_doors(seconds, function)
    if as_json:
        click.echo(json.dumps([door.as_json() for door in found]))
        return
    rows = [
        (d.name, f"{d.microseconds:.2f}", f"{d.overhead:.2f}" if d.over else "", d.over)
        for d in found
    ]
    _print_table(("door", "µs", "more", "than"), rows)


_SHARED = (
    click.option("--case", "names", multiple=True, help="A case by name, or all. Repeatable."),
    click.option(
        "--pass",
        "passes",
        multiple=True,
        type=click.Choice(["forward", "backward", "both"]),
        help="forward, the gradients, or a step of both. Repeatable; default all.",
    ),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True),
    click.option(
        "--against",
        multiple=True,
        type=click.Choice(["torch", "torch.compile"]),
        help="A peer. Repeatable.",
    ),
    click.option("--seconds", type=click.FloatRange(0.05), default=1.0, help="For each row."),
    click.option("--json", "file", type=click.Path(path_type=Path), help="Write rows to it."),
    click.option("--plot", type=click.Path(path_type=Path), help="Write the roofline, an SVG."),
)


def _layers_command(name: str, sentence: str) -> None:
    """`convgen bench map` and `convgen bench exotic`."""

    def run(**options: Any) -> None:
        _bench_layers(name, **options)

    run.__doc__ = sentence
    command: Any = run
    for option in reversed(_SHARED):
        command = option(command)
    bench.command(name, epilog=_example(f"convgen bench {name} --against torch --threads 2"))(
        command
    )


def _bench_layers(
    group: str,
    names: tuple[str, ...],
    passes: tuple[str, ...],
    threads: int,
    against: tuple[str, ...],
    seconds: float,
    file: Path | None,
    plot: Path | None,
) -> None:
    from convgen.bench import layers, subjects

    chosen = subjects.chosen({"map": subjects.MAPS, "exotic": subjects.EXOTIC}[group], names)
    for place in (file, plot):
        if place is not None and not place.parent.is_dir():
            raise UserError(f"there is no folder {place.parent}", where="--json, --plot")
    found: list[Any] = []
    measured = layers.measure(
        chosen, passes or layers.WHICH, threads=threads, against=against, seconds=seconds
    )
    for row in measured:
        found.append(row)
        ratio = (
            f"{row.peer} {row.peer_milliseconds:.3f} ms, ratio {row.ratio:.2f}, error "
            if (row.peer)
            else ""
        )
        click.echo(
            f"{row.case:>17}  {row.which:>8}  {row.milliseconds:8.3f} ms "
            f"({row.milliseconds_min:.3f}..{row.milliseconds_max:.3f})  {row.megabytes:6.1f} MB  "
            f"{row.share_of_copy:5.2f} of a copy  {ratio}"
            + (f"{row.error:.1e}" if row.error is not None else "")
        )
    means = layers.geometric_means(found)
    for which, mean in means.items():
        click.echo(f"geometric mean of the ratio, {which}: {mean:.2f}")
    if file is not None:
        text = {"rows": [row.as_json() for row in found], "geometric_means": means}
        file.write_text(json.dumps(text, indent=1) + "\n")
        click.echo(f"wrote {file}")
    if plot is not None:
        _plot_roofline(found, threads, plot)


def _plot_roofline(rows: Iterable[Any], threads: int, place: Path) -> None:
    """Every row that counts operations, under the peaks of this machine."""
    from dataclasses import asdict

    from convgen.bench.peak import measure_peak
    from convgen.inspect.machine import Spot, roofline

    spots = [
        Spot(
            f"{row.case} {row.which}",
            row.gigaflop * 1e3 / row.megabytes,
            row.gigaflop / row.milliseconds_min * 1e3,
        )
        for row in rows
    ]
    roofline(asdict(measure_peak(threads)), spots).save(place)
    click.echo(f"wrote {place}")


_layers_command("map", "Measure maps and windows: normalization, activation, pooling, softmax.")
_layers_command("exotic", "Measure layers that no library ships, against torch.")

_WIDTHS = (9, 7, 6, 7, 8, 8, 7, 8, 15, 10, 12, 5, 7)


def _cells(row: Any) -> list[str]:
    spread = f"{row.milliseconds_min:.3f}..{row.milliseconds_max:.3f}"
    cells = [row.case, row.which, row.layout, str(row.threads), "yes" if row.prepared else "no"]
    cells += [f"{row.gflops:.1f}", f"{row.share_of_peak:.1%}", f"{row.milliseconds:.3f}", spread]
    if row.peer is None:
        return [*cells, "-", "-", "-", "-"]
    return [*cells, row.peer, f"{row.peer_gflops:.1f}", f"{row.ratio:.2f}", f"{row.error:.1e}"]


def _field(row: dict[str, Any]) -> str:
    """The receptive field and its stride, "14×14 /4"; nothing where a layer reads the whole map."""
    if not row["receptive_field"]:
        return ""
    size, stride = (list(dict.fromkeys(row[k])) for k in ("receptive_field", "stride"))
    sizes = size * 2 if len(size) == 1 else size
    return f"{'×'.join(f'{s:g}' for s in sizes)} /{'×'.join(f'{s:g}' for s in stride)}"


def _print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=box.SIMPLE)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:  # files and pipes have no width to keep to
        wide = Console(width=1000).measure(table).maximum
        console = Console(width=max(console.width, wide))
    console.print(table)


def main() -> None:
    """Run the command line; an error of convgen's is one line on standard error and status 1."""
    try:
        cli()
    except InternalError:
        raise
    except ConvgenError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        click.echo(f"error: {error.filename}: {error.strerror}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
