"""The texts of a bundle: header, example, packages, loader, manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from convgen.backends.llvm import LlvmBackend
from convgen.interop.aot.bundle import ABI, Bundle
from convgen.interop.aot.render import render
from convgen.interop.aot.subject import Port
from convgen.runtime.verify import stored_certificate
from convgen.types import DType
from convgen.version import __version__

FORMAT = 1  # of MANIFEST.json; a change that readers must know of makes it grow
C_TYPES = {
    "f32": "float",
    "f64": "double",
    "i32": "int32_t",
    "i64": "int64_t",
    "u8": "uint8_t",
    "u16": "uint16_t",
    "u32": "uint32_t",
    "u64": "uint64_t",
    "bool": "uint8_t",
}


def texts(bundle: Bundle, weights: str, described: Mapping[str, str]) -> dict[str, str]:
    """File name -> text, without the manifest. `weights` is file, embedded or argument; `described`
    says what the step is (loss, optimizer)."""
    name = bundle.name
    values = _values(bundle, weights, described)
    header = ["c/header.h"]
    header += ["c/header-backward.h"] * bundle.backward + ["c/header-step.h"] * bundle.step
    header.append("c/header-end.h")
    package = {"name": name, "version": __version__, "description": f"{name}, made by convgen"}
    return {
        f"{name}.h": "".join(render(part, values) for part in header),
        "main.c": render("c/main.c", values | _example(bundle, weights)),
        f"{name}.py": render("c/loader.py", values),
        f"lib/cmake/{name}/{name}Config.cmake": render(
            "c/config.cmake", package | {"up": "../../.."}
        ),
        f"lib/cmake/{name}/{name}ConfigVersion.cmake": render("c/config-version.cmake", package),
        f"lib/pkgconfig/{name}.pc": render("c/package.pc", package | {"up": "../.."}),
        f"{name}.ll": bundle.ir,
        f"{name}.s": bundle.asm,
    }


def manifest(
    bundle: Bundle, weights: str, files: Mapping[str, bytes], described: Mapping[str, str]
) -> str:
    """MANIFEST.json: what a reader, a loader or a packager wants to know. A kernel's certificate is
    there when it was made before (`kernel.certificate()`)."""
    subject, ports = bundle.subject, bundle.subject.ports
    facts: dict[str, Any] = {
        "format": FORMAT,
        "name": bundle.name,
        "abi": ABI,
        "convgen": __version__,
        "backend": LlvmBackend().version(),
        "formula": subject.formula,
        "batch": subject.batch,
        "any_batch": {"infer": subject.any_infer, "train": subject.any_train},
        "backward": bundle.backward,
        "step": dict(described) if bundle.step else None,
        "weights": {"kind": weights, "bytes": ports.weight_bytes},
        "alignment": 64,
        "layout": "row-major",
        "seeds": ports.seeds,
        "hyper": list(ports.hyper),
        "arrays": {
            "x": _port_facts(ports.x),
            "y": _port_facts(ports.y),
            "dy": _port_facts(ports.dy),
            "dx": _port_facts(ports.dx),
            "weights": _port_facts(ports.weights),
            "grads": _port_facts(ports.grads),
            "states": _port_facts(ports.states),
            "labels": _port_facts([ports.labels] if ports.labels else []),
            "optimizer": _port_facts(ports.optimizer),
        },
        "targets": [
            {
                "name": level.target.name,
                "triple": level.target.llvm_triple,
                "cpu": level.target.llvm_cpu,
                "packed_bytes": level.packed_bytes + level.scratch_bytes,
                "workspace_bytes": [level.work_bytes, level.scratch_bytes],
                "saved_bytes": [level.saved.get("train", 0), level.saved.get("train.1", 0)],
                "kernels": [
                    {
                        "name": k.name,
                        "schedule": k.schedule,
                        "notes": list(k.notes),
                        "certificate": stored_certificate(k.key) if k.key else None,
                    }
                    for k in level.kernels
                ],
            }
            for level in bundle.levels
        ],
        "files": {
            path: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for path, data in sorted(files.items())
        },
    }
    return json.dumps(facts, indent=1, sort_keys=True) + "\n"


def _port_facts(ports: Sequence[Port]) -> list[dict[str, Any]]:
    return [
        {
            "name": p.name,
            "shape": list(p.shape),
            "dtype": p.dtype.name,
            "batch": p.sampled,
            "bytes": p.bytes,
            "offset": p.offset,
        }
        for p in ports
    ]


def _pointer(ports: Sequence[Port], constant: bool) -> str:
    """The C type of a group of arrays, up to its name."""
    qualifier = "const " if constant else ""
    if len(ports) > 1:
        return f"{qualifier}void *const *"
    if not ports:
        return f"{qualifier}void *"
    return f"{qualifier}{C_TYPES[ports[0].dtype.name]} *"


def _shape(port: Port) -> str:
    extents = [str(e) for e in port.shape]
    if port.sampled:
        extents[0] = "N"
    return f"{port.dtype.name}[{', '.join(extents)}]"


def _array_lines(bundle: Bundle) -> str:
    ports = bundle.subject.ports
    groups = {
        "x": ports.x,
        "y": ports.y,
        "weights": ports.weights,
        "state": ports.states,
        "dy": ports.dy,
        "dx": ports.dx,
        "grads": ports.grads,
        "labels": [ports.labels] if ports.labels else [],
    }
    lines: list[str] = []
    for group, items in groups.items():
        for i, port in enumerate(items):
            place = f"{group}[{i}]" if len(items) > 1 else group
            lines.append(f"     {place:12} {port.name}: {_shape(port)}")
    return "\n".join(lines)


def _values(bundle: Bundle, weights: str, described: Mapping[str, str]) -> dict[str, object]:
    subject, ports, name = bundle.subject, bundle.subject.ports, bundle.name
    upper = name.upper()
    lines = subject.formula.replace("*/", "* /").splitlines()
    formula = "\n".join(f"   {line}".rstrip() for line in lines)
    seen = {(True, True): "Any batch is served.",
            (True, False): "Inference serves any batch, training the nominal one alone.",
            (False, False): "Samples are mixed, so the nominal batch alone is served."}  # fmt: skip
    embedded = (
        f"/* The weights inside: {name}_pack takes them where weights == NULL. */\n"
        f"const void *{name}_weight_block(void);\n"
    )
    return {
        "name": name,
        "upper": upper,
        "version": __version__,
        "abi": ABI,
        "format": FORMAT,
        "formula": formula.rstrip(),
        "arrays": _array_lines(bundle),
        "batches": seen.get((subject.any_infer, subject.any_train), "Training serves any batch."),
        "targets": ", ".join(level.target.name for level in bundle.levels),
        "machines": json.dumps([level.target.name for level in bundle.levels]),
        "isa": bundle.isa,
        "nominal": subject.batch,
        "weights": len(ports.weights),
        "weight_bytes": ports.weight_bytes,
        "defines": _defines(bundle),
        "embedded": embedded if weights == "embedded" else "",
        "type_x": _pointer(ports.x, True),
        "type_y": _pointer(ports.y, False),
        "type_dy": _pointer(ports.dy, True),
        "type_dx": _pointer(ports.dx, False),
        "type_weights": _pointer(ports.weights, True),
        "type_step_weights": _pointer(ports.weights, False),
        "type_grads": _pointer(ports.grads, False),
        "type_state": _pointer(ports.states, False),
        "type_labels": C_TYPES[ports.labels.dtype.name] if ports.labels else "void",
        "element": C_TYPES[subject.dtype.name],
        "hyper": ", ".join(ports.hyper),
        "optimizer_bytes": ports.optimizer_bytes,
        "optimizer": described.get("optimizer", ""),
        "loss": described.get("loss", ""),
    }


def _defines(bundle: Bundle) -> str:
    """Numbers of elements, so that callers need not multiply shapes."""
    ports, upper = bundle.subject.ports, bundle.name.upper()
    lines: list[str] = []
    for stem, group in {"X": ports.x, "Y": ports.y, "STATE": ports.states}.items():
        for i, port in enumerate(group):
            number = str(i) if len(group) > 1 else ""
            count = port.sample_bytes if port.sampled else port.bytes
            note = "of one sample" if port.sampled else ""
            lines.append(
                f"#define {upper}_{stem}{number}_ELEMENTS {count // port.dtype.bytes}"
                f" /* {port.name} {note} */".replace(" */", " */")
            )
    return "\n".join(lines) + "\n"


# -- the example ----------------------------------------------------------------------------------


class _Example:
    """Collects the parts of main.c."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.dtypes: dict[str, DType] = {}
        self.declarations: list[str] = []
        self.setup: list[str] = []
        self.buffers = 5

    def group(self, stem: str, ports: Sequence[Port], fill: bool, constant: bool) -> str:
        """Memory for a group of arrays; the argument to hand to a function."""
        if not ports:
            return "NULL"
        for i, port in enumerate(ports):
            name = f"{stem}{i}"
            kind = C_TYPES[port.dtype.name]
            self.declarations.append(f"  {kind} *{name};")
            size = f"batch * {port.sample_bytes}" if port.sampled else str(port.bytes)
            self.setup.append(f"  {name} = ({kind} *)memory({size}, &freed[used++]);")
            if fill:
                self.dtypes[port.dtype.name] = port.dtype
                count = port.sample_bytes if port.sampled else port.bytes
                factor = "batch * " if port.sampled else ""
                self.setup.append(
                    f"  fill_{port.dtype.name}({name}, {factor}{count // port.dtype.bytes});"
                )
            self.buffers += 1
        if len(ports) == 1:
            return f"{stem}0"
        qualifier = "const void" if constant else "void"
        self.declarations.append(f"  {qualifier} *{stem}[{len(ports)}];")
        self.setup += [f"  {stem}[{i}] = {stem}{i};" for i in range(len(ports))]
        return stem

    def show(self, stem: str, ports: Sequence[Port]) -> list[str]:
        lines: list[str] = []
        for i, port in enumerate(ports):
            size = f"batch * {port.sample_bytes}" if port.sampled else str(port.bytes)
            lines.append(f'  show("{port.name}", {stem}{i}, {size});')
        return lines


def _example(bundle: Bundle, weights: str) -> dict[str, object]:
    """What main.c does for this bundle."""
    ports, name = bundle.subject.ports, bundle.name
    example = _Example(bundle)
    x = example.group("x", ports.x, True, True)
    y = example.group("y", ports.y, False, False)
    given = _example_weights(example, weights)
    state = example.group("state", ports.states, False, False)
    if ports.states:
        example.setup += [
            f"  fill_ones_{p.dtype.name}(state{i}, {p.bytes // p.dtype.bytes});"
            for i, p in enumerate(ports.states)
        ]
    shown = [(i, p) for i, p in enumerate(ports.y) if p.bytes]
    forward = [
        f"  check({name}_pack(context, {given}, packed));",
        f"  check({name}_forward(context, batch, {x}, packed, {state}, 1, {y}, NULL,",
        "      workspace, threads));",
        *example.show("y", ports.y),
        *(f'  first_{p.dtype.name}("{p.name}", y{i}, {_elements(p)});' for i, p in shown),
    ]
    backward: list[str] = []
    if bundle.backward:
        example.declarations.append("  void *saved;")
        example.setup.append(
            f"  saved = memory({name}_saved_bytes(context, batch), &freed[used++]);"
        )
        example.buffers += 1
        dy = example.group("dy", ports.dy, True, True)
        dx = example.group("dx", ports.dx, False, False)
        grads = example.group("grad", ports.grads, False, False)
        backward = [
            f"  check({name}_forward(context, batch, {x}, packed, {state}, 1, {y}, saved,",
            "      workspace, threads));",
            f"  check({name}_backward(context, batch, {x}, {dy}, packed, saved, {dx}, {grads},",
            "      workspace, threads));",
            *example.show("dx", ports.dx),
            *example.show("grad", ports.grads),
        ]
    served = "any batch" if bundle.subject.any_infer else f"batches of {bundle.subject.batch}"
    return {
        "first": "".join(
            _first(dtype) for dtype in {p.dtype.name: p.dtype for _, p in shown}.values()
        ),
        "fillers": "\n".join(_fillers(example.dtypes, ports.states)),
        "buffers": example.buffers,
        "declarations": "\n".join(example.declarations),
        "setup": "\n".join(example.setup),
        "forward": "\n".join(forward),
        "backward": "\n".join(backward),
        "shown": served,
    }


def _example_weights(example: _Example, weights: str) -> str:
    ports, name = example.bundle.subject.ports.weights, example.bundle.name
    upper = name.upper()
    if not ports:
        return "NULL"
    if weights == "argument":
        return example.group("weight", ports, True, True)
    if weights == "embedded":
        return "NULL"
    example.declarations += ["  FILE *file;", "  void *block;"]
    example.declarations.append(f"  const void *weights[{upper}_WEIGHTS];")
    example.setup += [
        f"  block = memory({upper}_WEIGHT_BYTES, &freed[used++]);",
        f'  file = fopen("{name}.weights", "rb");',
        "  if (file == NULL ||",
        f"      fread(block, 1, {upper}_WEIGHT_BYTES, file) != {upper}_WEIGHT_BYTES) {{",
        f'    fprintf(stderr, "{name}.weights is missing or too short\\n");',
        "    return 1;",
        "  }",
        "  fclose(file);",
        f"  {name}_weight_pointers(block, weights);",
    ]
    example.buffers += 1
    kind = C_TYPES[ports[0].dtype.name]
    return "weights" if len(ports) > 1 else f"(const {kind} *)weights[0]"


def _elements(port: Port) -> str:
    """The number of elements as a C expression."""
    count = (port.sample_bytes if port.sampled else port.bytes) // port.dtype.bytes
    return f"batch * {count}" if port.sampled else str(count)


def _first(dtype: DType) -> str:
    """The C function that prints the first elements of an array."""
    kind = C_TYPES[dtype.name]
    return (
        f"\nstatic void first_{dtype.name}"
        f"(const char *name, const {kind} *data, int64_t count) {{\n"
        '  int64_t i;\n  printf("%s begins with", name);\n'
        '  for (i = 0; i < count && i < 10; i++) printf(" %g", (double)data[i]);\n'
        '  printf("\\n");\n}\n'
    )


def _fillers(dtypes: Mapping[str, DType], states: Sequence[Port]) -> list[str]:
    lines: list[str] = []
    for name, dtype in dtypes.items():
        kind = C_TYPES[name]
        value = "draw()" if dtype.is_float else "(draw() + 0.5) * 2"
        lines.append(
            f"static void fill_{name}({kind} *data, int64_t count) {{\n"
            f"  int64_t i;\n  for (i = 0; i < count; i++) data[i] = ({kind})({value});\n}}\n"
        )
    for name in dict.fromkeys(p.dtype.name for p in states):
        kind = C_TYPES[name]
        lines.append(
            f"static void fill_ones_{name}({kind} *data, int64_t count) {{\n"
            f"  int64_t i;\n  for (i = 0; i < count; i++) data[i] = ({kind})1;\n}}\n"
        )
    return lines
