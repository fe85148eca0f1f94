"""Networks from images to images: SegNet (Badrinarayanan, Kendall and Cipolla, 2015) and U-Net
(Ronneberger, Fischer and Brox, 2015, padded)."""

from __future__ import annotations

from convgen.layers import Conv2d, ConvTranspose2d, MaxPool2d, MaxUnpool2d, ReLU
from convgen.layers.base import Layer
from convgen.runtime.module import Module, Sequential, Value, concat
from convgen.zoo.parts import conv_norm, conv_relu, scaled

_ENCODER = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class SegNet(Module):
    """VGG-16's 13 convolutions with batch norm, and their mirror: each pool's winners say where the
    decoder's values go. Scores (N, classes, H, W) for (N, 3, H, W) with sides divisible by 32."""

    def __init__(self, classes: int, width: float) -> None:
        self.encoder: list[Sequential] = []
        self.decoder: list[Sequential] = []
        inputs = 3
        for maps in _ENCODER:
            group: list[Layer | Module] = []
            for count in maps:
                outputs = scaled(count, width)
                group.append(conv_norm(inputs, outputs, 3, padding=1, activation=ReLU()))
                inputs = outputs
            self.encoder.append(Sequential(*group))
        for number in reversed(range(len(_ENCODER))):
            maps = _ENCODER[number]
            last = _ENCODER[number - 1][-1] if number else classes
            group = []
            for place, count in enumerate(maps):
                final = place == len(maps) - 1
                outputs = last if final and not number else scaled(last if final else count, width)
                if final and not number:
                    group.append(Conv2d(inputs, outputs, 3, padding=1))
                else:
                    group.append(conv_norm(inputs, outputs, 3, padding=1, activation=ReLU()))
                inputs = outputs
            self.decoder.append(Sequential(*group))
        self.pools = [MaxPool2d(2, return_indices=True) for _ in _ENCODER]
        self.unpools = [MaxUnpool2d(2) for _ in _ENCODER]

    def forward(self, *values: Value) -> Value:
        (x,) = values
        winners: list[Value] = []
        for group, pool in zip(self.encoder, self.pools, strict=True):
            x, places = pool(group(x))
            winners.append(places)
        for group, unpool in zip(self.decoder, self.unpools, strict=True):
            x = group(unpool(x, winners.pop()))
        return x


def segnet(classes: int = 12, width: float = 1.0) -> SegNet:
    """SegNet: 29 million parameters at full width."""
    return SegNet(classes, width)


class UNet(Module):
    """Four times two 3×3 convolutions and a pool, two more, four times a 2×2 up-convolution joined
    to the encoder's map and two 3×3; a 1×1 to the classes. Sides divisible by 16."""

    def __init__(self, classes: int, width: float, channels: int) -> None:
        maps = [scaled(64 << i, width) for i in range(5)]
        pairs = list(zip([channels, *maps], maps, strict=False))
        self.down = [self._double(a, b) for a, b in pairs]
        self.pool = MaxPool2d(2)
        back = list(reversed(maps))
        steps = list(zip(back, back[1:], strict=False))
        self.up = [ConvTranspose2d(a, b, 2, stride=2) for a, b in steps]
        self.join = [self._double(2 * b, b) for _, b in steps]
        self.last = Conv2d(maps[0], classes, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> Sequential:
        return Sequential(
            conv_relu(inputs, outputs, 3, padding=1), conv_relu(outputs, outputs, 3, padding=1)
        )

    def forward(self, *values: Value) -> Value:
        (x,) = values
        kept: list[Value] = []
        for number, group in enumerate(self.down):
            x = group(x)
            if number < len(self.down) - 1:
                kept.append(x)
                x = self.pool(x)
        for up, group in zip(self.up, self.join, strict=True):
            x = group(concat([kept.pop(), up(x)]))
        return self.last(x)


def unet(classes: int = 2, width: float = 1.0, channels: int = 1) -> UNet:
    """U-Net, padded, 64 to 1024 maps: 31 030 658 parameters."""
    return UNet(classes, width, channels)
