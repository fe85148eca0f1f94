"""DCGAN (Radford, Metz and Chintala, "Unsupervised representation learning with deep convolutional
generative adversarial networks", 2015): 4×4 kernels, no biases, images 64×64."""

from __future__ import annotations

from convgen.layers import BatchNorm2d, Conv2d, ConvTranspose2d, Flatten, LeakyReLU, ReLU, Tanh
from convgen.layers.base import Layer
from convgen.runtime.module import Module, Sequential
from convgen.zoo.parts import scaled


def dcgan_generator(width: float = 1.0, latent: int = 100, channels: int = 3) -> Sequential:
    """Noise (N, latent, 1, 1) to images (N, channels, 64, 64) in -1..1: 3 576 704 parameters."""
    inputs = latent
    layers: list[Layer | Module] = []
    for number, count in enumerate((512, 256, 128, 64)):
        maps = scaled(count, width)
        stride, padding = (2, 1) if number else (1, 0)
        layers += [
            ConvTranspose2d(inputs, maps, 4, stride=stride, padding=padding, bias=False),
            BatchNorm2d(maps),
            ReLU(),
        ]
        inputs = maps
    last = ConvTranspose2d(inputs, channels, 4, stride=2, padding=1, bias=False)
    return Sequential(*layers, last, Tanh())


def dcgan_discriminator(width: float = 1.0, channels: int = 3) -> Sequential:
    """Images (N, channels, 64, 64) to one score each (N, 1), before the sigmoid: 2 765 568
    parameters."""
    inputs = channels
    layers: list[Layer | Module] = []
    for number, count in enumerate((64, 128, 256, 512)):
        maps = scaled(count, width)
        layers.append(Conv2d(inputs, maps, 4, stride=2, padding=1, bias=False))
        if number:
            layers.append(BatchNorm2d(maps))
        layers.append(LeakyReLU(0.2))
        inputs = maps
    return Sequential(*layers, Conv2d(inputs, 1, 4, bias=False), Flatten())
