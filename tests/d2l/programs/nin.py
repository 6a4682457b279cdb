from torch import nn

from pydl import d2l


def nin_block(in_channels, out_channels, kernel_size, strides, padding):
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, strides, padding), nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=1), nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=1), nn.ReLU(),
    )  # fmt: skip


net = nn.Sequential(
    nin_block(1, 12, kernel_size=11, strides=2, padding=0),
    nn.MaxPool2d(3, stride=2),
    nin_block(12, 32, kernel_size=5, strides=1, padding=2),
    nn.MaxPool2d(3, stride=2),
    nin_block(32, 48, kernel_size=3, strides=1, padding=1),
    nn.MaxPool2d(3, stride=2),
    nn.Dropout(0.5),
    nin_block(48, 10, kernel_size=3, strides=1, padding=1),
    nn.AdaptiveAvgPool2d((1, 1)),
    nn.Flatten(),
)
lr, num_epochs, batch_size = 0.1, 1, 64
train_iter, test_iter = d2l.load_data_fashion_mnist(batch_size, resize=64)
d2l.train_ch6(net, train_iter, test_iter, num_epochs, lr, d2l.try_gpu())
