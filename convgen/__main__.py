"""The command line: parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from convgen.commands.bench import bench
from convgen.commands.build import build, verify
from convgen.commands.options import JSON, example
from convgen.commands.printing import print_table
from convgen.commands.show import report, show
from convgen.commands.tune import audit, tune
from convgen.errors import ConvgenError, InternalError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="convgen")
def cli() -> None:
    """Write a layer as a formula; get its gradients, native kernels and networks that train."""


@cli.command(epilog=example("CONVGEN_DEBUG=2 convgen knobs"))
@JSON
def knobs(as_json: bool) -> None:
    """Show the environment variables, their values and what they do."""
    from dataclasses import asdict

    from convgen import knobs as declared

    found = declared.rows()
    if as_json:
        click.echo(json.dumps([asdict(row) for row in found], indent=1))
        return
    table = [(r.variable, r.value or "-", r.source, r.accepts, r.sentence) for r in found]
    print_table(("variable", "value", "from", "accepts", "meaning"), table)


@cli.command(epilog=example("convgen demo --seed 1 --output my-demo"))
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
@JSON
def demo(as_json: bool, **options: Any) -> None:
    """Train LeNet-5 on real handwritten digits, from formulas, and show every step."""
    from convgen.demo import run

    result = run(quiet=as_json, **options)
    if as_json:
        click.echo(json.dumps(result))


for command in (show, report, build, verify, tune, audit, bench):
    cli.add_command(command)


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
