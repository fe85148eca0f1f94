"""Networks by name, each a function of classes and width: ``cg.zoo.resnet18(classes=10)``."""

from collections.abc import Callable

from convgen.layers.base import Shape
from convgen.runtime.module import Module
from convgen.zoo.alexnet import alexnet, overfeat, zfnet
from convgen.zoo.alphago import alphago
from convgen.zoo.dcgan import dcgan_discriminator, dcgan_generator
from convgen.zoo.densenet import densenet121
from convgen.zoo.inception import googlenet, inception_factorised, nin
from convgen.zoo.jarrett import jarrett, tiled_cnn
from convgen.zoo.lenet import lenet5, mlp
from convgen.zoo.mobilenet import mobilenetv2
from convgen.zoo.resnet import plain34, resnet18, resnet34, resnet50, resnet101, resnet152
from convgen.zoo.segmentation import segnet, unet
from convgen.zoo.vgg import vgg11, vgg11_lrn, vgg13, vgg16, vgg16_1x1, vgg19
from convgen.zoo.video import stunet

_DIGIT, _PHOTO, _SMALL = (1, 28, 28), (3, 224, 224), (3, 32, 32)

# name -> (maker, shape of one input without the batch)
NETWORKS: dict[str, tuple[Callable[..., Module], Shape]] = {
    "lenet5": (lenet5, _DIGIT),
    "alexnet": (alexnet, (3, 227, 227)),
    "zfnet": (zfnet, _PHOTO),
    "overfeat": (overfeat, (3, 231, 231)),
    "vgg11": (vgg11, _PHOTO),
    "vgg11_lrn": (vgg11_lrn, _PHOTO),
    "vgg13": (vgg13, _PHOTO),
    "vgg16_1x1": (vgg16_1x1, _PHOTO),
    "vgg16": (vgg16, _PHOTO),
    "vgg19": (vgg19, _PHOTO),
    "googlenet": (googlenet, _PHOTO),
    "inception_factorised": (inception_factorised, _PHOTO),
    "nin": (nin, _SMALL),
    "plain34": (plain34, _PHOTO),
    "resnet18": (resnet18, _PHOTO),
    "resnet34": (resnet34, _PHOTO),
    "resnet50": (resnet50, _PHOTO),
    "resnet101": (resnet101, _PHOTO),
    "resnet152": (resnet152, _PHOTO),
    "densenet121": (densenet121, _PHOTO),
    "alphago": (alphago, (48, 19, 19)),
    "jarrett": (jarrett, _DIGIT),
    "tiled_cnn": (tiled_cnn, _DIGIT),
    "segnet": (segnet, (3, 224, 224)),
    "dcgan_generator": (dcgan_generator, (100, 1, 1)),
    "dcgan_discriminator": (dcgan_discriminator, (3, 64, 64)),
    "unet": (unet, (1, 256, 256)),
    "stunet": (stunet, (3, 8, 64, 64)),
    "mobilenetv2": (mobilenetv2, _PHOTO),
    "mlp": (mlp, _DIGIT),
}

__all__ = ["NETWORKS", *NETWORKS]
