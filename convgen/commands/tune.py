"""`convgen tune` and `convgen audit`: schedules that are measured, gradients that are checked."""

from __future__ import annotations

import json
import sys

import click

from convgen.commands.options import JSON, example, sized
from convgen.commands.subjects import program_of, resolve
from convgen.errors import UserError


@click.command(epilog=example("convgen tune 'Conv2d(4, 8, 3)' --input 1,4,16,16 --search 4"))
@click.argument("subject")
@sized
@click.option("--wrt", multiple=True, help="Tune the gradients to these instead. Repeatable.")
@click.option("--search", "count", type=click.IntRange(1), default=8, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@JSON
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
    from convgen.runtime.tune import tune as run
    from convgen.symbolic.derive import grad

    program = program_of(resolve(subject, shapes, input_shape))
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


@click.command(
    epilog=example(
        "convgen audit mine.py:grad_w --of 'Conv2d(64, 128, 3, stride=2)' "
        "--input 8,64,56,56 --wrt W"
    )
)
@click.argument("function", metavar="FILE.py:FUNCTION")
@click.option("--of", "subject", required=True, help="The formula or layer, a SUBJECT.")
@click.option("--wrt", help="The input whose gradient it is; needed where there are several.")
@sized
@click.option("--training", is_flag=True, help="The layer as it is in training.")
@JSON
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

    backward, ran = function_in(function)
    click.echo(f"ran {ran}", err=True)
    found = resolve(subject, shapes, input_shape)
    program = program_of(found, training)
    if program is None:
        raise UserError(f"{found.name} is a network", expected="a formula or a layer", where="--of")
    result = check(backward, program, wrt)
    click.echo(json.dumps(result.as_json(), indent=1) if as_json else str(result))
    if not result.passed:
        sys.exit(1)
