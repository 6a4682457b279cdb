import torch
from torch import nn

from pydl import d2l


class Conv2D(nn.Module):
    def __init__(self, kernel_size):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(kernel_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return d2l.corr2d(x, self.weight) + self.bias


X = torch.ones((6, 8))
X[:, 2:6] = 0
K = torch.tensor([[1.0, -1.0]])
Y = d2l.corr2d(X, K)
edges = Conv2D((1, 2))(X)

conv2d = nn.Conv2d(1, 1, kernel_size=(1, 2), bias=False)
image, target, lr = X.reshape((1, 1, 6, 8)), Y.reshape((1, 1, 6, 7)), 3e-2
for i in range(20):
    error = (conv2d(image) - target) ** 2
    conv2d.zero_grad()
    error.sum().backward()
    conv2d.weight.data[:] -= lr * conv2d.weight.grad
    if (i + 1) % 10 == 0:
        print(f"epoch {i + 1}, loss {error.sum():.3f}")


def corr2d_multi_in(X, K):
    return sum(d2l.corr2d(x, k) for x, k in zip(X, K, strict=True))


many = corr2d_multi_in(torch.stack((X, X)), torch.stack((K, K)))
