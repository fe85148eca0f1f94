"""The report: one self-contained page about a layer or a network, from its formula to its machine
code. Nothing is loaded when it is read; formulas are MathML, pictures are inline SVG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convgen.backends.assembly import hot_loop
from convgen.errors import ConvgenError, DataError
from convgen.inspect import machine
from convgen.inspect.costs import costs_of
from convgen.inspect.drawing import COLORS, style_sheet
from convgen.inspect.fields import fields, receptive_fields
from convgen.inspect.operator import OperatorView, operator_view
from convgen.inspect.roofline import Spot, roofline
from convgen.inspect.windows import connections, reads_and_reaches, residue_classes
from convgen.layers.base import Layer, Shape
from convgen.runtime.kernel import CompiledKernel
from convgen.runtime.kernel import compile as compile_program
from convgen.runtime.module import Module, trace
from convgen.runtime.table import rows_of
from convgen.runtime.threads import template
from convgen.symbolic import derive
from convgen.symbolic.printer import definition_mathml
from convgen.symbolic.program import Program
from convgen.symbolic.rewrite import closed_form_steps

MOST_LINES = 16  # definitions of one step that are shown
MOST_LLVM = 24_000  # characters of LLVM IR that are shown: the function with the hot loop
MOST_CELLS = 2600  # entries of a matrix that is shown
MOST_LAYERS = 12  # layers of a network that get machine code


@dataclass(frozen=True)
class Block:
    """What a section shows: kind says how `content` is laid out (html, code, drawing, note)."""

    kind: str
    content: str
    title: str = ""
    folded: bool = False


@dataclass
class Section:
    """A part of the page with an anchor of its own."""

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    level: int = 2

    def html(self, content: str, title: str = "") -> None:
        self.blocks.append(Block("html", content, title))

    def code(self, content: str, title: str, *, folded: bool = True) -> None:
        self.blocks.append(Block("code", content, title, folded))

    def drawing(self, drawing: machine.Drawing | None) -> None:
        if drawing is not None:
            self.blocks.append(Block("drawing", drawing.svg(inline=True), drawing.title))

    def note(self, text: str) -> None:
        self.blocks.append(Block("note", text))

    def table(self, rows: Sequence[Sequence[Any]], head: Sequence[str] = ()) -> None:
        self.html(_render("table.html", head=head, rows=rows))


def write_report(
    subject: Program | Layer | Module,
    path: str | Path,
    *,
    name: str = "",
    shape: Shape | None = None,
    wrt: Sequence[str] = (),
    peak: Mapping[str, object] | None = None,
) -> Path:
    """Write the report of a program, a layer or a network to an HTML file.

    shape   of the input of a layer or network, batch included
    wrt     gradients to show (default: all)
    peak    what ``convgen bench peak --json`` printed: adds the roofline

    Raises what deriving and compiling raise; DataError where jinja2 is missing.
    """
    path = Path(path)
    path.write_text(report_html(subject, name=name, shape=shape, wrt=wrt, peak=peak), "utf-8")
    return path


def report_html(
    subject: Program | Layer | Module,
    *,
    name: str = "",
    shape: Shape | None = None,
    wrt: Sequence[str] = (),
    peak: Mapping[str, object] | None = None,
) -> str:
    """The page as text: see `write_report`."""
    if isinstance(subject, Program):
        sections = program_sections(subject, "", wrt, peak)
        facts = f"{len(subject.stages)} stage{'s'[: len(subject.stages) != 1]}"
        return _page(name or subject.name, facts, sections)
    if shape is None:
        raise DataError(
            "a report of a layer needs the shape of its input", expected="shape=(1, 3, 8, 8)"
        )
    if isinstance(subject, Layer):
        program = subject.program(shape)
        sections = program_sections(program, "", wrt, peak)
        return _page(name or repr(subject), f"input {_shape_text(shape)}", sections)
    return _page(
        name or type(subject).__name__,
        f"input {_shape_text(shape)}",
        network_sections(subject, shape, peak),
    )


# ---------------------------------------------------------------------------------------------
# A program


def program_sections(
    program: Program,
    prefix: str = "",
    wrt: Sequence[str] = (),
    peak: Mapping[str, object] | None = None,
    *,
    level: int = 2,
) -> list[Section]:
    """Every section about one program; anchors begin with `prefix`."""
    bound = program.bind(**dict.fromkeys(program.sizes(), 8))
    wanted = list(wrt) or [t.name for t in program.inputs if t.dtype.is_float]
    backward = derive.grad(program, wanted) if wanted else None
    sections = [_formula(program, prefix)]
    if backward is not None:
        sections += [_gradient(backward, prefix), _derivation(program, wanted, prefix)]
    sections.append(_operator(bound, wanted, prefix))
    sections.append(_pictures(bound, wanted, prefix))
    kernels = {"forward": compile_program(bound)}
    if backward is not None:
        sizes = dict.fromkeys(backward.sizes(), 8)
        kernels["gradient"] = compile_program(backward.bind(**sizes))
    sections += _machine(kernels, prefix, peak)
    for section in sections:
        section.level = level
    return [s for s in sections if s.blocks]


def _formula(program: Program, prefix: str) -> Section:
    section = Section(prefix + "formula", "Formula")
    section.html(f'<div class="math">{program.mathml()}</div>')
    tensors = [(t.name, t.role, str(t.dtype), _shape_text(t.shape)) for t in _tensors(program)]
    section.table(tensors, ("tensor", "role", "dtype", "shape"))
    _sources(section, program)
    return section


def _tensors(program: Program) -> list[Any]:
    return list(program.tensors().values())


def _sources(section: Section, program: Program) -> None:
    section.code(str(program), "Text form (parses back to the same program)")
    section.code(program.latex(), "LaTeX")
    section.code(program.to_numpy(), "NumPy source")
    section.code(program.to_torch(), "torch source")


def _gradient(backward: Program, prefix: str) -> Section:
    section = Section(prefix + "gradient", "Gradient")
    section.note(
        "Each gradient is a gather: every element is written once, by the products that reach it. "
        "Reading outside a tensor gives zero."
    )
    section.html(f'<div class="math">{backward.mathml()}</div>')
    rewrites = closed_form_steps(backward)
    if rewrites:
        section.html(_render("rewrites.html", rewrites=rewrites))
        section.html(f'<div class="math">{rewrites[-1].program.mathml()}</div>')
    _sources(section, rewrites[-1].program if rewrites else backward)
    return section


def _derivation(program: Program, wanted: Sequence[str], prefix: str) -> Section:
    section = Section(prefix + "derivation", "Derivation, step by step")
    section.note(
        "Each step is a formula that can be run: all steps of one contribution compute the same "
        "numbers. The chain rule sends every product to one element; the index equation is solved "
        "for what reaches a given element, one residue class at a time."
    )
    steps = derive.steps(program, list(wanted))
    for number in sorted({s.number for s in steps}):
        own = [s for s in steps if s.number == number]
        items = [
            {
                "title": step.title,
                "formula": step.formula.replace("; at [", "\nat ["),
                "math": [] if before and before.lines == step.lines else _definitions(step.program),
                "source": step.program.to_numpy(),
            }
            for before, step in zip([None, *own], own, strict=False)
        ]
        section.html(_render("steps.html", tensor=f"d{own[0].tensor}", steps=items))
    return section


def _definitions(program: Program) -> list[str]:
    found = [definition_mathml(program, p) for s in program.stages for p in s.pieces]
    if len(found) <= MOST_LINES:
        return found
    rest = len(found) - MOST_LINES
    return [*found[:MOST_LINES], f'<p class="note">and {rest} pieces of the same kind</p>']


# ---------------------------------------------------------------------------------------------
# Operator view and pictures


def _operator(program: Program, wanted: Sequence[str], prefix: str) -> Section:
    section = Section(prefix + "operator", "As a linear operator")
    for tensor in wanted[:2]:
        view = operator_view(program, tensor)
        if view is not None and len(view.proof.matrix.entries) > 1:
            section.html(_matrix_html(view))
    if section.blocks:
        section.blocks.insert(
            0,
            Block(
                "note",
                "The same formula at small extents: stride, dilation and padding are kept, "
                "axes that stand alone run over one value.",
            ),
        )
    return section


def _matrix_html(view: OperatorView) -> str:
    matrix = view.proof.matrix
    rows, columns = matrix.output.elements, matrix.wrt.elements
    shown = rows * columns <= MOST_CELLS
    colors: dict[str, int] = {}
    for _, entry in sorted(matrix.entries.items()):
        colors.setdefault(str(entry), len(colors))
    cells = [
        [
            {"text": _short(str(e)), "color": colors[str(e)] % 9}
            if (e := matrix.entry(i, j))
            else None
            for j in range(columns)
        ]
        for i in range(rows)
    ]
    return _render(
        "matrix.html",
        output=matrix.output.name,
        wrt=matrix.wrt.name,
        rows=rows,
        columns=columns,
        cells=cells if shown else [],
        holds=view.holds,
        formula=view.program.mathml(),
        first=_short(str(view.proof.derived[0])),
    )


def _short(entry: str) -> str:
    """W[0, 0, 1, 2] as W[1,2]: leading zeros of single channels left out where they are many."""
    return entry.replace("[0, 0, ", "[").replace(", ", ",")


def _pictures(program: Program, wanted: Sequence[str], prefix: str) -> Section:
    section = Section(prefix + "pictures", "Pictures")
    section.drawing(reads_and_reaches(program))
    section.drawing(connections(program))
    for tensor in wanted:
        section.drawing(residue_classes(derive.adjoint(program, tensor)))
    return section


# ---------------------------------------------------------------------------------------------
# Machine


def _machine(
    kernels: Mapping[str, CompiledKernel], prefix: str, peak: Mapping[str, object] | None
) -> list[Section]:
    schedule = Section(prefix + "schedule", "Schedule and loops")
    code = Section(prefix + "code", "Machine code")
    costs = Section(prefix + "costs", "Costs")
    certificate = Section(prefix + "certificate", "Certificate")
    rows: list[tuple[Any, ...]] = []
    spots: list[Spot] = []
    for title, kernel in kernels.items():
        report = kernel.report(measure=peak is not None)
        schedule.code(report.schedule or "(as lowered)", f"{title}: schedule", folded=False)
        schedule.drawing(machine.loop_nest(kernel.loops))
        schedule.code(kernel.loops, f"{title}: all loops")
        _code(code, kernel, title)
        found = costs_of(kernel.program)
        seconds = report.measured_seconds
        reached = found.operations / seconds / 1e9 if seconds else None
        spots.append(Spot(title, found.intensity, reached))
        rows.append(
            (
                title,
                f"{found.products:,}",
                f"{found.array_bytes:,}",
                f"{found.intensity:.2f}",
                f"{report.object_bytes:,}",
                f"{report.workspace_bytes:,}",
                len(report.phases),
            )
        )
        costs.code(str(report), f"{title}: report", folded=False)
        document = _certificate(kernel)
        if document:
            certificate.html(_render("certificate.html", title=title, document=document))
            certificate.code(json.dumps(document, indent=1, default=str), f"{title}: JSON")
    head = ("kernel", "products", "bytes of arrays", "operations per byte")
    costs.table(rows, (*head, "bytes of code", "workspace bytes", "phases"))
    if peak is not None:
        costs.drawing(roofline(peak, spots))
    return [schedule, code, costs, certificate]


def _certificate(kernel: CompiledKernel) -> dict[str, Any]:
    """The kernel's certificate as plain values."""
    found: Any = kernel.certificate().as_json()
    return dict(json.loads(found) if isinstance(found, str) else found)


def _code(section: Section, kernel: CompiledKernel, title: str) -> None:
    asm = kernel.asm
    hot = hot_loop(asm)
    if hot is not None:
        lines = [
            {"text": line.replace("\t", "  "), "fused": i in hot.fused}
            for i, line in enumerate(hot.lines)
        ]
        section.html(
            _render(
                "assembly.html",
                title=title,
                label=hot.label,
                lines=lines,
                fused=len(hot.fused),
                instructions=hot.instructions,
            )
        )
    else:
        section.note(f"{title}: no multiply-adds in its machine code")
    section.code(_hot_function(kernel.llvm, kernel.loops), f"{title}: LLVM IR")


def _hot_function(llvm: str, loops: str) -> str:
    """The function with most multiply-adds, cut where it is long."""
    parts = llvm.split("\ndefine ")
    if len(parts) == 1:
        return llvm[:MOST_LLVM]
    hot = max(parts[1:], key=lambda p: (p.count("@llvm.fma"), len(p)))
    text = "define " + hot
    if len(text) <= MOST_LLVM:
        return text
    return text[:MOST_LLVM] + f"\n; and {len(text) - MOST_LLVM:,} more characters (kernel.llvm)"


# ---------------------------------------------------------------------------------------------
# A network


def network_sections(
    module: Module, shape: Shape, peak: Mapping[str, object] | None = None
) -> list[Section]:
    """The table, the receptive fields, then every distinct layer."""
    graph = trace(module, [shape])
    table = Section("layers", "Layers")
    rows = rows_of(graph)
    anchors = _anchors(rows)
    table.html(
        _render(
            "layers.html",
            rows=[
                {**row, "anchor": anchors[row["layer"]], "size": _shape_text(row["shape"])}
                for row in rows
            ],
            parameters=graph.parameter_count(),
            products=graph.multiply_adds() // max(shape[0], 1),
        )
    )
    sight = Section("fields", "Receptive fields")
    if len(shape) > 2:
        sight.drawing(receptive_fields(fields(graph), shape[-1]))
    sections = [table, *([sight] if sight.blocks else [])]
    sections += _layers(graph, rows, anchors, peak)
    return sections


def _anchors(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in rows:
        found.setdefault(row["layer"], f"layer-{len(found)}")
    return found


def _layers(
    graph: Any,
    rows: Sequence[Mapping[str, Any]],
    anchors: Mapping[str, str],
    peak: Mapping[str, object] | None,
) -> list[Section]:
    sections: list[Section] = []
    seen: set[str] = set()
    for node, row in zip(graph.nodes, rows, strict=True):
        text = row["layer"]
        if text in seen:
            continue
        seen.add(text)
        anchor = anchors[text]
        shapes = [graph.values[i].shape for i in node.inputs]
        header = Section(anchor, text)
        header.note(f"{row['path']}: input {', '.join(map(_shape_text, shapes))}")
        sections.append(header)
        if node.layer.is_view:
            header.note("The input's elements in another shape: nothing is computed.")
            continue
        program = node.layer.program(*shapes)
        full = len(seen) <= MOST_LAYERS and node.layer.parameters(*shapes)
        own = (
            program_sections(program, anchor + "-", (), peak, level=3)
            if full
            else _formulas_only(program, anchor + "-")
        )
        sections += own
    return sections


def _formulas_only(program: Program, prefix: str) -> list[Section]:
    wanted = [t.name for t in program.inputs if t.dtype.is_float]
    sections = [_formula(program, prefix)]
    try:
        sections.append(_gradient(derive.grad(program, wanted), prefix))
    except ConvgenError as error:
        sections[0].note(f"no gradient: {error}")
    pictures = Section(prefix + "pictures", "Pictures")
    pictures.drawing(reads_and_reaches(program))
    sections.append(pictures)
    for section in sections:
        section.level = 3
    return [s for s in sections if s.blocks]


# ---------------------------------------------------------------------------------------------
# The page


def _shape_text(shape: Sequence[Any]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape)) or "one number"


def _page(title: str, facts: str, sections: Sequence[Section]) -> str:
    dark = "".join(f"--{n}:{pair[1]};" for n, pair in COLORS.items())
    light = "".join(f"--{n}:{pair[0]};" for n, pair in COLORS.items())
    return _render(
        "page.html",
        title=title,
        facts=facts,
        sections=sections,
        light=light,
        dark=dark,
        drawings=style_sheet(".drawing"),
    )


def _render(name: str, **values: Any) -> str:
    """A template of templates/report; whatever is not marked safe there is escaped."""
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError:
        raise DataError("reports need jinja2", hint="pip install jinja2") from None
    key = "environment"
    if key not in _CACHE:
        _CACHE[key] = Environment(
            loader=FunctionLoader(lambda n: template(f"report/{n}")),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
    return str(_CACHE[key].get_template(name).render(**values))


_CACHE: dict[str, Any] = {}
