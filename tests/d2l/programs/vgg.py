from torch import nn

from pydl import d2l


def vgg_block(num_convs, in_channels, out_channels):
    layers = []
    for _ in range(num_convs):
        layers.append(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
        layers.append(nn.ReLU())
        in_channels = out_channels
    layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)


def vgg(conv_arch):
    conv_blks, in_channels = [], 1
    for num_convs, out_channels in conv_arch:
        conv_blks.append(vgg_block(num_convs, in_channels, out_channels))
        in_channels = out_channels
    return nn.Sequential(
        *conv_blks, nn.Flatten(),
        nn.Linear(out_channels, 64), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(64, 10),
    )  # fmt: skip


conv_arch = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
ratio = 16
net = vgg([(pair[0], pair[1] // ratio) for pair in conv_arch])
lr, num_epochs, batch_size = 0.05, 1, 64
train_iter, test_iter = d2l.load_data_fashion_mnist(batch_size, resize=32)
d2l.train_ch6(net, train_iter, test_iter, num_epochs, lr, d2l.try_gpu())
