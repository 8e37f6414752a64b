"""Networks: images to prototypes to logits. Tensors in, tensors out; only ``weights`` reads files."""

from bundle.networks.alpnet import AlignedALPNet, ALPNet, PrototypeHead
from bundle.networks.classifier import CosineClassifier, TopKClassifier
from bundle.networks.encoders import ResNetEncoder
from bundle.networks.prototypes import BackgroundPrototypes, ClassPrototype, ForegroundPrototypes, LocalPrototypes
from bundle.networks.transformer import TransformerEncoder
from bundle.networks.weights import load_network, load_weights, trainable_parameters

__all__ = [
    "ALPNet",
    "AlignedALPNet",
    "BackgroundPrototypes",
    "ClassPrototype",
    "CosineClassifier",
    "ForegroundPrototypes",
    "LocalPrototypes",
    "PrototypeHead",
    "ResNetEncoder",
    "TopKClassifier",
    "TransformerEncoder",
    "load_network",
    "load_weights",
    "trainable_parameters",
]
