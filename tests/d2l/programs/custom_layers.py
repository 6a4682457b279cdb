import torch
from torch import nn
from torch.nn import functional as F

from pydl import d2l


class CenteredLayer(nn.Module):
    def forward(self, X):
        return X - X.mean()


class MyLinear(nn.Module):
    def __init__(self, in_units, units):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_units, units) * 0.05)
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, X):
        return F.relu(X @ self.weight + self.bias)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden = MyLinear(784, 128)
        self.centered = CenteredLayer()
        self.output = nn.LazyLinear(10)

    def forward(self, X):
        return self.output(self.centered(self.hidden(self.flatten(X))))


net = MLP().to(d2l.try_gpu())
train_iter, test_iter = d2l.load_data_fashion_mnist(64)
net(next(iter(train_iter))[0])
d2l.train_ch3(
    net, train_iter, test_iter, nn.CrossEntropyLoss(), 3, torch.optim.SGD(net.parameters(), lr=0.3), swap=False
)
print(d2l.try_gpu(), d2l.try_gpu(10), d2l.try_all_gpus())
