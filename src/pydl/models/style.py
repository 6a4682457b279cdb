"""Style transfer: a picture whose numbers are trained, and a VGG body that says how like two others it is."""

import torch
from torch.nn import Module, Parameter, Sequential, init

from pydl import functional
from pydl.models._registry import check_at_least, check_variant, register
from pydl.models.vgg import VGG16, VGG19, vgg_block
from pydl.nn import AvgPool2d, Conv2d
from pydl.swapping.chains import normalised

BODIES = {"vgg16": VGG16, "vgg19": VGG19}
CONTENT = 4, 2  # the second convolution of the fourth block; the style's are the first ones of all blocks
SMALLEST = 32


class StyleTransfer(Module):
    """The picture and the body.

    Attributes:
        image: (1, 3, H, W), in the body's preprocessing; the only parameter that is trained.
        features: the convolutions up to the last that is looked at, under torchvision's names, each followed by ReLU;
            average pooling between blocks in place of the maximum, as Gatys et al. prefer.
        content, style, variation: weights of the three losses.
    """

    def __init__(self, body, image_size, content, style, variation):
        super().__init__()
        self.content, self.style, self.variation = content, style, variation
        self.image = Parameter(torch.zeros(1, 3, *image_size))
        layers, self._styles, channels = [], [], 3
        for block, (count, width) in enumerate(BODIES[body], start=1):
            self._styles.append(len(layers))
            if block == CONTENT[0]:
                self._contents = len(layers) + 2 * (CONTENT[1] - 1)
            layers += [*vgg_block(count, channels, width)[:-1], AvgPool2d(kernel_size=2, stride=2)]
            channels = width
        self._whole = {f"features.{i}.{name}" for i, at in enumerate(layers) for name in dict(at.named_parameters())}
        self.features = Sequential(*layers[: self._styles[-1] + 1]).requires_grad_(False)

    def forward(self, image=None):
        """(content features (1, C, h, w), list of the Gram matrices (C, C) of the style features) of ``image``.

        A Gram matrix holds the products of channels, averaged over places and channels. Without ``image``, of the
        model's own.
        """
        x, grams = self.image if image is None else image, []
        content = None
        for number, layer in enumerate(self.features):
            if isinstance(layer, Conv2d):
                x = normalised(layer, None, x)  # with its ReLU
                if number in self._styles:
                    grams.append(gram(x))
                if number == self._contents:
                    content = x
            elif isinstance(layer, AvgPool2d):
                x = layer(x)
        return content, grams

    @torch.no_grad()
    def randomise(self, images):
        """Makes the body one of random filters for ``images`` (N, 3, H, W), for want of weights of a trained one.

        The filters of a layer are orthogonal to each other, scaled and shifted one by one such that each has mean 0 and
        standard deviation 1 over the images before its ReLU: every layer then says something at its own scale.

        Source: Ustyuzhaninov, Brendel, Gatys and Bethge, "What does it take to generate natural textures?", ICLR 2017;
        He, Wang and Hopcroft, NeurIPS 2016, for the random body.
        """
        x = images
        for layer in self.features:
            if isinstance(layer, Conv2d):
                init.orthogonal_(layer.weight)
                init.zeros_(layer.bias)
                y = layer(x)
                scale = y.std((0, 2, 3)).clamp_min(1e-6)
                layer.bias.copy_(-y.mean((0, 2, 3)) / scale)
                layer.weight.div_(scale.view(-1, 1, 1, 1))
                x = normalised(layer, None, x)
            elif isinstance(layer, AvgPool2d):
                x = layer(x)

    def own_names(self, state):
        """A VGG's ``state_dict`` by torchvision's names without what is deeper than this body; the picture is ours."""
        dropped = self._whole - set(self.state_dict())
        kept = {name: t for name, t in state.items() if name not in dropped and not name.startswith("classifier.")}
        return kept | {"image": self.image.detach()}


def gram(features):
    """(C, C) mean products of the channels of (1, C, h, w), divided by C."""
    rows = features.flatten(2)[0]
    return functional.mm(rows, rows.t()) / rows.numel()


@register("style")
def style(image_size=(200, 300), body="vgg19", content=5.0, style=100.0, variation=30.0):
    """Neural style transfer: the numbers of a picture are trained until a VGG's features see the content of one picture
    and, in products of channels that know no place, the style of another; total variation keeps neighbours alike.

    ``content``, ``style`` and ``variation`` are the weights of the losses, ``body`` is vgg19 or vgg16. With
    ``--weights FILE`` the body has torchvision's weights; without, random filters.

    Source: d2l section "Neural Style Transfer"; Gatys, Ecker and Bethge, "Image Style Transfer Using Convolutional
    Neural Networks", CVPR 2016.
    Input: none. Output: (1, 512, H / 8, W / 8) and five Gram matrices.
    Parameters: 12,944,960 of the body, 3 · H · W of the picture.

    Raises:
        ValueError: for an unknown body, a picture narrower than 32, or a weight below 0.
    """
    check_variant("style", body, tuple(BODIES), "body")
    check_at_least("style", height=image_size[0], width=image_size[1])
    if min(image_size) < SMALLEST:
        raise ValueError(f"style: expected a picture of at least {SMALLEST}×{SMALLEST}, got {image_size}")
    for name, weight in (("content", content), ("style", style), ("variation", variation)):
        if not weight >= 0:
            raise ValueError(f"style: expected {name} to be a weight of at least 0, got {weight}")
    return StyleTransfer(body, tuple(image_size), content, style, variation)
