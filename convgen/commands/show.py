"""`convgen show` and `convgen report`: a subject on the screen, or as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from convgen.commands.options import JSON, check_writable, example, sized
from convgen.commands.printing import print_table
from convgen.commands.subjects import program_of, resolve
from convgen.errors import DataError, UserError


@click.command(epilog=example("convgen show 'Conv2d(3, 8, 3, stride=2)' --input 1,3,32,32"))
@click.argument("subject")
@sized
@click.option("--wrt", multiple=True, help="Gradients to show (default: all). Repeatable.")
@click.option(
    "--form",
    type=click.Choice(["text", "unicode", "latex", "mathml", "numpy", "torch"]),
    default="text",
    show_default=True,
)
@JSON
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
    from convgen.symbolic.derive import grad

    found = resolve(subject, shapes, input_shape)
    program = program_of(found)
    if program is None:
        _show_network(found, as_json)
        return
    backward = grad(program, list(wrt) or None)
    texts = [_in_form(p, form) for p in (program, backward)]
    if as_json:
        click.echo(json.dumps({"program": texts[0], "gradient": texts[1]}))
        return
    click.echo("\n\n".join(texts))


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
    print_table(head, cells)
    click.echo(memory_line(memory))


def _field(row: dict[str, Any]) -> str:
    """The receptive field and its stride, "14×14 /4"; nothing where a layer reads the whole map."""
    if not row["receptive_field"]:
        return ""
    size, stride = (list(dict.fromkeys(row[k])) for k in ("receptive_field", "stride"))
    sizes = size * 2 if len(size) == 1 else size
    return f"{'×'.join(f'{s:g}' for s in sizes)} /{'×'.join(f'{s:g}' for s in stride)}"


@click.command(epilog=example("convgen report 'Conv2d(4, 8, 3, stride=2)' --input 1,4,16,16"))
@click.argument("subject")
@sized
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
@click.option("--text", is_flag=True, help="Print what the kernels say of themselves; no page.")
@click.option("--measure", is_flag=True, help="As --text, with times measured now.")
@JSON
def report(
    subject: str,
    shapes: tuple[str, ...],
    input_shape: str | None,
    wrt: tuple[str, ...],
    peak: Path | None,
    output: Path,
    text: bool,
    measure: bool,
    as_json: bool,
) -> None:
    """Write a page about SUBJECT: formula, gradients and their derivation, matrices, pictures,
    schedule, loops, machine code and costs. One file that loads nothing.

    SUBJECT is what `convgen show` takes.
    """
    from convgen.inspect.report import write_report

    found = resolve(subject, shapes, input_shape)
    if text or measure:
        _print_reports(found, wrt, measure, as_json)
        return
    check_writable(output=output)
    what = found.program if found.program is not None else found.module
    assert what is not None
    facts = _read_peak(peak) if peak is not None else None
    name = found.name
    if found.program is not None:
        name = found.program.name if "\n" in subject else subject
    write_report(what, output, name=name, shape=found.shape, wrt=wrt, peak=facts)
    size = output.stat().st_size
    if as_json:
        click.echo(json.dumps({"path": str(output), "bytes": size}))
        return
    click.echo(f"wrote {output}, {size / 1e6:.2f} MB")


def _read_peak(path: Path) -> dict[str, Any]:
    """What `convgen bench peak --json` printed into a file."""
    try:
        facts: Any = json.loads(path.read_text(encoding="utf-8"))
        float(facts["gflops"])
    except (ValueError, KeyError, TypeError) as error:
        wanted = "what `convgen bench peak --json` prints"
        raise DataError("no peak of a machine", expected=wanted, where=str(path)) from error
    return facts


def _print_reports(found: Any, wrt: tuple[str, ...], measure: bool, as_json: bool) -> None:
    """The reports of the forward kernel and of the gradients' one."""
    from convgen.runtime.kernel import compile as compile_program
    from convgen.symbolic.derive import grad

    program = program_of(found)
    if program is None:
        raise UserError(f"{found.name} is a network", expected="a formula or a layer")
    kernels = [compile_program(p) for p in (program, grad(program, list(wrt) or None))]
    reports = [kernel.report(measure) for kernel in kernels]
    if as_json:
        click.echo(json.dumps([one.as_json() for one in reports]))
        return
    click.echo("\n\n".join(map(str, reports)))
