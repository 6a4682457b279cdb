"""The deep convolutional generative adversarial network: a generator of images and a discriminator that tells them."""

import torch
from torch.nn import Module, Sequential, init

from pydl.models._registry import check_at_least, register
from pydl.nn import BatchNorm2d, Conv2d, ConvTranspose2d, LeakyReLU, ReLU, Tanh

BASE = 4  # height and width where both networks are narrowest in space


class GAN(Module):
    """Both networks; they are trained by turns, see :class:`pydl.training.gan.GanLearner`.

    Attributes:
        generator: noise (N, latent, 1, 1) to images (N, channels, H, W) in [-1, 1].
        discriminator: images to one logit each (N, 1, 1, 1) that they are real.
        latent: numbers of noise for an image.
    """

    def __init__(self, channels, input_size, latent, width):
        super().__init__()
        self.latent = latent
        halvings = (input_size // BASE).bit_length() - 1
        widths = [width * 2**i for i in range(halvings)]  # from the image to the 4×4 map
        layers, wide = (
            [ConvTranspose2d(latent, widths[-1], BASE, bias=False), BatchNorm2d(widths[-1]), ReLU()],
            widths[-1],
        )
        for narrow in reversed(widths[:-1]):
            layers += [ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False), BatchNorm2d(narrow), ReLU()]
            wide = narrow
        self.generator = Sequential(
            *layers, ConvTranspose2d(wide, channels, 4, stride=2, padding=1, bias=False), Tanh()
        )
        layers = []
        for wide in widths:
            layers += [Conv2d(channels, wide, 4, stride=2, padding=1, bias=False), BatchNorm2d(wide), LeakyReLU(0.2)]
            channels = wide
        self.discriminator = Sequential(*layers, Conv2d(channels, 1, BASE, bias=False))
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, Conv2d | ConvTranspose2d):
                    init.normal_(layer.weight, 0, 0.02)

    def noise(self, count, generator=None):
        """(count, latent, 1, 1) from N(0, 1), on the CPU: the same for every backend."""
        return torch.randn(count, self.latent, 1, 1, generator=generator)

    def forward(self, images):
        """(N,) logits that the images are real."""
        return self.discriminator(images).flatten()


@register("gan")
def dcgan(in_channels=1, input_size=32, latent=100, width=32):
    """DCGAN: transposed convolutions that double height and width, and the convolutions that undo them, each with
    batch normalisation; ReLU in the generator, leaky ReLU in the discriminator; weights begin as N(0, 0.02²).

    Source: d2l section "Deep Convolutional Generative Adversarial Networks"; Radford, Metz and Chintala, "Unsupervised
    Representation Learning with Deep Convolutional Generative Adversarial Networks", ICLR 2016. The book's has
    ``width=64``, ``input_size=64`` and three channels.
    Input: (N, 1, 32, 32), or (N, in_channels, input_size, input_size), input_size 4 times a power of 2, 8 at least.
    Parameters: 536,448.
    FLOPs: 17,715,200, an image made and judged.

    Raises:
        ValueError: for another input_size, and a size below 1.
    """
    check_at_least("dcgan", latent=latent, width=width)
    if input_size < 2 * BASE or input_size % BASE or (input_size // BASE).bit_count() != 1:
        raise ValueError(f"dcgan: expected input_size to be 4 times a power of 2, 8 at least, got {input_size}")
    return GAN(in_channels, input_size, latent, width)
