"""`convgen bench`: this machine, and the kernels convgen makes for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from convgen.commands.options import (
    DTYPE,
    PLACE,
    PLOT,
    THREADS,
    check_writable,
    example,
    names,
    together,
)
from convgen.commands.printing import print_table, write_json

LIBRARIES = ("torch", "ort", "openvino")
_CASES = names("--case", "cases", help="Cases by name, or all. Repeatable.")
_PASSES = names(
    "--pass",
    "passes",
    choice=("forward", "input", "weights"),
    help="forward, or the gradient to the input or to the weights. Repeatable; default all.",
)
_SECONDS = click.option(
    "--seconds", type=click.FloatRange(0.05), default=1.0, show_default=True, help="For each row."
)


@click.group()
def bench() -> None:
    """Measure this machine and the kernels convgen makes for it."""


@bench.command(epilog=example("convgen bench peak --threads 2"))
@THREADS
@DTYPE
@click.option("--seconds", type=click.FloatRange(0.05), default=0.5, show_default=True)
@PLACE
def peak(threads: int, dtype: str, seconds: float, place: Path | None) -> None:
    """Measure the rate of multiply-adds this machine reaches."""
    from dataclasses import asdict

    from convgen.bench.peak import measure_peak
    from convgen.types import dtype_of

    check_writable(json=place)
    found = measure_peak(threads, dtype_of(dtype), seconds)
    if place is not None:
        write_json(asdict(found), place)
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
    print_table(("level", "kind", "KiB a thread", "GB/s"), rows)


_KERNELS = together(
    _CASES,
    _PASSES,
    THREADS,
    DTYPE,
    names("--against", choice=LIBRARIES, help="Peers. Repeatable."),
    _SECONDS,
    PLACE,
    PLOT,
)


@bench.command(
    epilog=example("convgen bench conv --case vgg3_2 --pass forward --against torch,ort,openvino")
)
@_KERNELS
@names(
    "--layout",
    "layouts",
    choice=("nhwc", "nchw", "preferred"),
    help="Layout of the caller's arrays; preferred: as the compiler chooses. Repeatable; default "
    "nhwc.",
)
def conv(**options: Any) -> None:
    """Measure convolution kernels of well-known networks against the peak and against peers.

    With packing included the ratio is to torch, which packs weights in every call too; a prepared
    row's is to the best of ONNX Runtime and OpenVINO, which pack ahead (without those, to torch).
    """
    from convgen.bench.cases import CASES

    _bench_kernels(CASES, **options)


@bench.command(epilog=example("convgen bench dense --pass forward --against torch,openvino"))
@_KERNELS
def dense(**options: Any) -> None:
    """Measure fully connected layers, 4096 to 4096: fc1 of one row (as fast as weights are read
    from memory), fc64 of 64.

    Rows read as those of `convgen bench conv`.
    """
    from convgen.bench.cases import DENSE

    _bench_kernels(DENSE, layouts=(), **options)


def _bench_kernels(
    default: Mapping[str, Any],
    cases: Sequence[str],
    passes: Sequence[str],
    layouts: Sequence[str],
    threads: int,
    dtype: str,
    against: Sequence[str],
    seconds: float,
    place: Path | None,
    plot: Path | None,
) -> None:
    from convgen.bench import cases as known
    from convgen.bench import conv as kernels
    from convgen.types import dtype_of

    check_writable(json=place, plot=plot)
    chosen = known.cases(cases, default)
    limits = kernels.Limits.measured(threads, dtype_of(dtype))
    measured = kernels.measure(
        chosen,
        passes or known.PASSES,
        layouts or ("nhwc",),
        threads=threads,
        dtype=dtype_of(dtype),
        against=against,
        seconds=seconds,
        limits=limits,
    )
    quiet = str(place) == "-"
    rows: list[Any] = []
    _echo_line(_COLUMNS, quiet)
    for row in measured:
        rows.append(row)
        _echo_line(_cells(row), quiet)
    means = kernels.geometric_means(rows)
    if not quiet:
        _echo_means(means)
    if any(row.share_of_peak > 1 for row in rows):
        click.echo(
            "above the peak: multiply-adds with the padding are counted and need not be carried "
            "out; without padding, the peak was read too low: measure again",
            err=True,
        )
    if place is not None:
        write_json({"rows": [r.as_json() for r in rows], "geometric_means": means}, place)
    if plot is not None:
        spots = [
            (f"{r.case} {r.which}{' prepared' if r.prepared else ''}", r.which,
             r.gflops * r.milliseconds / r.megabytes, r.gflops)
            for r in rows
        ]  # fmt: skip
        _plot_roofline(limits.peak, spots, plot)


@bench.command(epilog=example("convgen bench odd --first 40 --count 20 --json odd.json"))
@click.option("--first", type=click.IntRange(0), default=0, show_default=True, help="Number.")
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_PASSES
@click.option("--layout", type=click.Choice(["nhwc", "nchw"]), default="nhwc", show_default=True)
@THREADS
@click.option("--compile-only", is_flag=True, help="Fill the cache of kernels, measure nothing.")
@PLACE
def odd(
    first: int,
    count: int,
    seed: int,
    passes: tuple[str, ...],
    layout: str,
    threads: int,
    compile_only: bool,
    place: Path | None,
) -> None:
    """Measure convolutions of shapes that nobody tuned for, drawn from a seed, against torch.

    Packing included, against the better torch layout. A row below 0.8 is measured three times
    again, and printed with its schedule if the middle one still is.
    """
    from convgen.bench import odd as drawn
    from convgen.bench.cases import PASSES
    from convgen.bench.conv import Limits
    from convgen.types import f32

    check_writable(json=place)
    cases = drawn.shapes(first + count, seed)[first:]
    which = passes or PASSES
    if compile_only:
        click.echo(f"{drawn.compile_all(cases, which, layout, threads)} kernels compiled")
        return
    quiet = str(place) == "-"
    found: list[Any] = []
    limits = Limits.measured(threads, f32)
    for one in drawn.measure(cases, which, layout, threads=threads, limits=limits):
        found.append(one)
        if one.slow and not quiet:
            click.echo(_odd_lines(one))
    summary = drawn.summary(found)
    if not quiet:
        rows = [
            (name, *(f"{part[k]:g}" for k in ("rows", "below")),
             *(f"{part[k]:.2f}" for k in ("median", "smallest")))
            for name, part in summary.items()
        ]  # fmt: skip
        print_table(("pass", "rows", f"below {drawn.SLOW}", "median ratio", "smallest"), rows)
    if place is not None:
        write_json({"rows": [one.as_json() for one in found], "summary": summary}, place)


def _odd_lines(one: Any) -> str:
    case, row = one.case, one.row
    return (
        f"{case.name} {row.which}: ratio {row.ratio:.2f}, {row.gflops:.1f} GFLOP/s "
        f"({row.share_of_peak:.0%} of peak), {row.peer} {row.peer_gflops:.1f}; channels "
        f"{case.channels} to {case.filters}, size {case.size} to {case.out}, kernel {case.kernel}, "
        f"stride {case.stride}, padding {case.padding}, groups {case.groups}, dilation "
        f"{case.dilation}" + "".join(f"\n    {line}" for line in one.schedule.splitlines())
    )


_COLUMNS = (
    "case", "pass", "layout", "threads", "prepared", "GFLOP/s", "of peak", "of bandwidth", "ms",
    "min..max", "peer", "peer GFLOP/s", "ratio", "to torch", "error",
)  # fmt: skip
_WIDTHS = (9, 7, 6, 7, 8, 8, 7, 12, 8, 15, 13, 12, 5, 8, 7)


def _echo_line(cells: Sequence[str], quiet: bool) -> None:
    if not quiet:
        click.echo("  ".join(f"{c:>{w}}" for c, w in zip(cells, _WIDTHS, strict=True)))


def _cells(row: Any) -> list[str]:
    spread = f"{row.milliseconds_min:.3f}..{row.milliseconds_max:.3f}"
    cells = [row.case, row.which, row.layout, str(row.threads), "yes" if row.prepared else "no"]
    cells += [f"{row.gflops:.1f}", f"{row.share_of_peak:.1%}"]
    cells += [f"{row.level} {row.share_of_bandwidth:.0%}", f"{row.milliseconds:.3f}", spread]
    cells += [row.peer or "-"]
    found = (row.peer_gflops, row.ratio, row.ratio_to_torch, row.error)
    forms = ("{:.1f}", "{:.2f}", "{:.2f}", "{:.1e}")
    return cells + [
        "-" if value is None else form.format(value)
        for value, form in zip(found, forms, strict=True)
    ]


def _echo_means(means: Mapping[str, float]) -> None:
    for name, mean in means.items():
        click.echo(f"geometric mean of the ratio, {name}: {mean:.2f}")


@bench.command("compile", epilog=example("convgen bench compile --case res3_s2"))
@click.option("--case", default="vgg3_2", show_default=True, help="A case by name.")
@PLACE
def compile_cost(case: str, place: Path | None) -> None:
    """Measure import, and compiling a case with both gradients, cold and from the cache."""
    from dataclasses import asdict

    from convgen.bench import cases
    from convgen.bench.compiling import measure_cost

    check_writable(json=place)
    found = measure_cost(cases.cases((case,))[0].name)
    if place is not None:
        write_json(asdict(found), place)
        return
    click.echo(
        f"{case} with both gradients: cold {found.cold:.2f} s, from the cache "
        f"{found.warm * 1e3:.0f} ms, {found.object_bytes / 1024:.0f} KiB of code; "
        f"import convgen {found.imported:.2f} s"
    )


@bench.command(epilog=example("convgen bench embed --seconds 5"))
@click.option("--seconds", type=click.FloatRange(0.05), default=2.0, show_default=True)
@PLACE
def embed(seconds: float, place: Path | None) -> None:
    """Measure what it costs to enter a kernel from C, Python and PyTorch.

    The C call is NAME_forward of an exported bundle; without a C compiler it is left out.
    """
    from convgen.bench.embed import measure_doors
    from convgen.interop.aot.export import export

    try:
        from convgen.interop.torch import function
    except ImportError:
        function = None  # no PyTorch: its doors are left out
    check_writable(json=place)
    found = measure_doors(seconds, function, export)
    for note in found.notes:
        click.echo(note, err=True)
    if place is not None:
        write_json([door.as_json() for door in found.doors], place)
        return
    rows = [
        (d.name, f"{d.microseconds:.2f}")
        + ((f"{d.overhead:.2f}", f"{d.share:.1%}", d.over) if d.over else ("", "", ""))
        for d in found.doors
    ]
    print_table(("door", "µs", "more", "in %", "than"), rows)


_LAYERS = together(
    _CASES,
    names(
        "--pass",
        "passes",
        choice=("forward", "backward", "both"),
        help="forward, the gradients, or a step of both. Repeatable; default all.",
    ),
    THREADS,
    names("--against", choice=("torch", "torch.compile"), help="Peers. Repeatable."),
    _SECONDS,
    PLACE,
    PLOT,
)


@bench.command("map", epilog=example("convgen bench map --against torch --threads 2"))
@_LAYERS
def maps(**options: Any) -> None:
    """Measure maps and windows: normalization, activation, pooling, softmax."""
    from convgen.bench.subjects import MAPS

    _bench_layers(MAPS, **options)


@bench.command(epilog=example("convgen bench exotic --against torch --threads 2"))
@_LAYERS
def exotic(**options: Any) -> None:
    """Measure layers that no library ships, against torch."""
    from convgen.bench.subjects import EXOTIC

    _bench_layers(EXOTIC, **options)


def _bench_layers(
    group: Any,
    cases: Sequence[str],
    passes: Sequence[str],
    threads: int,
    against: Sequence[str],
    seconds: float,
    place: Path | None,
    plot: Path | None,
) -> None:
    from convgen.bench import layers, subjects
    from convgen.bench.peak import measure_peak

    check_writable(json=place, plot=plot)
    chosen = subjects.chosen(group, cases)
    quiet = str(place) == "-"
    found: list[Any] = []
    measured = layers.measure(
        chosen, passes or layers.WHICH, threads=threads, against=against, seconds=seconds
    )
    for row in measured:
        found.append(row)
        if not quiet:
            click.echo(_layer_line(row))
    means = layers.geometric_means(found)
    if not quiet:
        _echo_means(means)
    if place is not None:
        write_json({"rows": [row.as_json() for row in found], "geometric_means": means}, place)
    if plot is not None:
        spots = [
            (f"{r.case} {r.which}", r.which, r.gigaflop * 1e3 / r.megabytes,
             r.gigaflop / r.milliseconds_min * 1e3)
            for r in found
        ]  # fmt: skip
        _plot_roofline(measure_peak(threads), spots, plot)


def _layer_line(row: Any) -> str:
    ratio = (
        f"{row.peer} {row.peer_milliseconds:.3f} ms, ratio {row.ratio:.2f}, error {row.error:.1e}"
        if row.peer
        else ""
    )
    return (
        f"{row.case:>17}  {row.which:>8}  {row.milliseconds:8.3f} ms "
        f"({row.milliseconds_min:.3f}..{row.milliseconds_max:.3f})  {row.megabytes:6.1f} MB  "
        f"{row.share_of_copy:5.2f} of a copy, {row.share_of_bound:5.2f} of the bound by "
        f"{row.bound} ({row.instruction_milliseconds:.3f} ms)  {ratio}"
    )


def _plot_roofline(peak: Any, spots: Sequence[tuple[str, str, float, float]], place: Path) -> None:
    """(name, group, operations per byte, GFLOP/s) of kernels under the limits of this machine."""
    from dataclasses import asdict

    from convgen.inspect.roofline import Spot, roofline

    found = [Spot(name, flops, rate, group) for name, group, flops, rate in spots]
    roofline(asdict(peak), found).save(place)
    click.echo(f"wrote {place}", err=True)
