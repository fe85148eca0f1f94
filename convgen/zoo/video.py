"""STUNet: a U-Net over video (N, C, T, H, W) from space-time factorised convolutions."""

from __future__ import annotations

from convgen.layers import Conv3d, MaxPool3d, ReLU, SpaceTimeConv3d, Upsample
from convgen.runtime.module import Module, Sequential, Value, concat
from convgen.zoo.parts import scaled


def _block(inputs: int, outputs: int) -> Sequential:
    """Twice a 1×3×3 convolution in space and a 3×1×1 convolution in time, each with ReLU after."""
    return Sequential(
        SpaceTimeConv3d(inputs, outputs, 3, 3, padding=1),
        ReLU(),
        SpaceTimeConv3d(outputs, outputs, 3, 3, padding=1),
        ReLU(),
    )


class STUNet(Module):
    """Two levels down (space and time halved by max pooling), two up (nearest up-sampling joined to
    the encoder's maps), a 1×1×1 convolution to the classes. Sides divisible by 4."""

    def __init__(self, classes: int, width: float, channels: int) -> None:
        a, b, c = (scaled(x, width) for x in (32, 64, 128))
        self.first, self.second, self.bottom = _block(channels, a), _block(a, b), _block(b, c)
        self.pool, self.up = MaxPool3d(2), Upsample(scale_factor=2)
        self.third, self.fourth = _block(c + b, b), _block(b + a, a)
        self.last = Conv3d(a, classes, 1)

    def forward(self, *values: Value) -> Value:
        (x,) = values
        fine = self.first(x)
        middle = self.second(self.pool(fine))
        deep = self.bottom(self.pool(middle))
        middle = self.third(concat([middle, self.up(deep)]))
        return self.last(self.fourth(concat([fine, self.up(middle)])))


def stunet(classes: int = 2, width: float = 1.0, channels: int = 3) -> STUNet:
    """STUNet for (N, channels, T, H, W)."""
    return STUNet(classes, width, channels)
