import torch
from torch import nn

from pydl import d2l

train_iter, test_iter = d2l.load_data_fashion_mnist(64)
net = nn.Sequential(
    nn.Conv2d(1, 8, kernel_size=3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
    nn.Linear(8 * 14 * 14, 10),
)  # fmt: skip
devices = d2l.try_all_gpus()
trainer = torch.optim.Adam(net.parameters(), lr=0.005)
d2l.train_ch13(net, train_iter, test_iter, nn.CrossEntropyLoss(reduction="none"), trainer, 3, devices)
