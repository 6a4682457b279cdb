from torch import nn

from pydl import d2l

b1 = nn.Sequential(
    nn.Conv2d(1, 16, kernel_size=7, stride=2, padding=3),
    nn.BatchNorm2d(16), nn.ReLU(),
    nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
)  # fmt: skip


def resnet_block(input_channels, num_channels, num_residuals, first_block=False):
    blk = []
    for i in range(num_residuals):
        if i == 0 and not first_block:
            blk.append(d2l.Residual(input_channels, num_channels, use_1x1conv=True, strides=2))
        else:
            blk.append(d2l.Residual(num_channels, num_channels))
    return blk


b2 = nn.Sequential(*resnet_block(16, 16, 2, first_block=True))
b3 = nn.Sequential(*resnet_block(16, 32, 2))
b4 = nn.Sequential(*resnet_block(32, 64, 1))
net = nn.Sequential(b1, b2, b3, b4, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(64, 10))
lr, num_epochs, batch_size = 0.05, 2, 32
train_iter, test_iter = d2l.load_data_fashion_mnist(batch_size, resize=32)
d2l.train_ch6(net, train_iter, test_iter, num_epochs, lr, d2l.try_gpu())
