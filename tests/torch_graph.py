"""A traced network carried out by torch: every layer by torch's own function, in float64.

`TorchGraph(graph, state)` has one parameter for each of ours; calling it runs the nodes in order.
Layers torch lacks are written out with torch operations from their definition.
"""

import torch
import torch.nn.functional as F


class TorchGraph:
    def __init__(self, graph, state, dtype=torch.float64):
        self.graph = graph
        trained = {name for name, _, spec in graph.specs if spec.trained}
        self.tensors = {
            name: torch.tensor(array, dtype=dtype, requires_grad=name in trained)
            for name, array in state.items()
        }
        self.trained = [self.tensors[name] for name, _, s in graph.specs if s.trained]

    def __call__(self, *inputs, training=False):
        values = dict(zip((v.number for v in self.graph.inputs), inputs, strict=True))
        for node in self.graph.nodes:
            shapes = [self.graph.values[i].shape for i in node.inputs]
            own = {
                spec.name: self.tensors[f"{node.path}.{spec.name}" if node.path else spec.name]
                for spec in node.layer.parameters(*shapes)
            }
            run = RUN[type(node.layer).__name__]
            made = run(node.layer, own, training, *(values[i] for i in node.inputs))
            results = made if isinstance(made, tuple) else (made,)
            values.update(zip(node.outputs, results, strict=True))
        found = tuple(values[v.number] for v in self.graph.outputs)
        return found[0] if len(found) == 1 else found


def _conv(function):
    def run(layer, p, training, x):
        return function(
            x, p["weight"], p.get("bias"), layer.stride, layer.padding, layer.dilation, layer.groups
        )

    return run


def _conv_transpose(layer, p, training, x):
    return F.conv_transpose2d(
        x, p["weight"], p.get("bias"), layer.stride, layer.padding, layer.output_padding,
        layer.groups, layer.dilation,
    )  # fmt: skip


def _batch_norm(layer, p, training, x):
    return F.batch_norm(
        x, p["running_mean"], p["running_var"], p["weight"], p["bias"], training, layer.momentum,
        layer.eps,
    )  # fmt: skip


def _max_pool(function):
    def run(layer, p, training, x):
        return function(
            x, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            ceil_mode=layer.ceil_mode, return_indices=layer.return_indices,
        )  # fmt: skip

    return run


def _avg_pool(layer, p, training, x):
    return F.avg_pool2d(
        x, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad
    )


def _local_contrast(layer, p, training, x):
    size = layer.kernel_size
    sigma = layer.sigma or size / 4
    place = torch.arange(size, dtype=x.dtype) - (size - 1) / 2
    bell = torch.exp(-(place**2) / (2 * sigma**2))
    window = bell[:, None] * bell[None, :]
    window = (window / window.sum() / x.shape[1]).expand(1, x.shape[1], size, size)
    v = x - F.conv2d(x, window, padding=size // 2)
    spread = torch.sqrt(F.conv2d(v**2, window, padding=size // 2))
    least = spread.mean(dim=(1, 2, 3), keepdim=True) if layer.c is None else layer.c
    return v / torch.maximum(spread, torch.as_tensor(least, dtype=x.dtype))


def _tiled(layer, p, training, x):
    weight = p["weight"]
    tall, wide = weight.shape[:2]
    bias, pads = p["bias"], layer.padding
    outs = {
        (i, j): F.conv2d(x, weight[i, j], bias[:, i, j], layer.stride, pads)
        for i in range(tall)
        for j in range(wide)
    }
    result = torch.zeros_like(outs[0, 0])
    for (i, j), out in outs.items():
        mask = torch.zeros_like(result)
        mask[:, :, i::tall, j::wide] = 1
        result = result + out * mask
    return result


def _space_time(layer, p, training, x):
    (st, sy, sx), (pt, py, px) = layer.stride, layer.padding
    y = F.conv3d(x, p["space_weight"], None, (1, sy, sx), (0, py, px))
    return F.conv3d(y, p["time_weight"], p.get("bias"), (st, 1, 1), (pt, 0, 0))


RUN = {
    "Conv2d": _conv(F.conv2d),
    "Conv3d": _conv(F.conv3d),
    "SpaceTimeConv3d": _space_time,
    "ConvTranspose2d": _conv_transpose,
    "BatchNorm2d": _batch_norm,
    "MaxPool2d": _max_pool(F.max_pool2d),
    "MaxPool3d": _max_pool(F.max_pool3d),
    "AvgPool2d": _avg_pool,
    "MaxUnpool2d": lambda m, p, t, x, i: F.max_unpool2d(x, i, m.kernel_size, m.stride, m.padding),
    "AdaptiveAvgPool2d": lambda m, p, t, x: F.adaptive_avg_pool2d(x, m.output_size),
    "Linear": lambda m, p, t, x: F.linear(x, p["weight"], p.get("bias")),
    "LocalResponseNorm": lambda m, p, t, x: F.local_response_norm(x, m.size, m.alpha, m.beta, m.k),
    "LocalContrastNorm": _local_contrast,
    "TiledConv2d": _tiled,
    "PositionBias": lambda m, p, t, x: x + p["bias"],
    "ScaledTanh": lambda m, p, t, x: p["weight"].reshape(1, -1, 1, 1) * torch.tanh(x),
    "Upsample": lambda m, p, t, x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "Softmax": lambda m, p, t, x: F.softmax(x, m.dim),
    "LeakyReLU": lambda m, p, t, x: F.leaky_relu(x, m.negative_slope),
    "ReLU": lambda m, p, t, x: F.relu(x),
    "ReLU6": lambda m, p, t, x: F.relu6(x),
    "Tanh": lambda m, p, t, x: torch.tanh(x),
    "Abs": lambda m, p, t, x: torch.abs(x),
    "Dropout": lambda m, p, t, x: x,
    "Flatten": lambda m, p, t, x: torch.flatten(x, m.start_dim, m.end_dim),
    "Add": lambda m, p, t, *x: sum(x[1:], x[0]),
    "Concat": lambda m, p, t, *x: torch.cat(x, m.dim),
}
