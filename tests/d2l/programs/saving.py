import torch
from torch import nn

from pydl import d2l

x = torch.arange(4)
torch.save(x, "x-file")
x2 = torch.load("x-file")


def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


net = make()
train_iter, test_iter = d2l.load_data_fashion_mnist(64)
d2l.train_ch3(net, train_iter, test_iter, nn.CrossEntropyLoss(), 2, torch.optim.SGD(net.parameters(), lr=0.2))
torch.save(net.state_dict(), "mlp.params")
clone = make()
clone.load_state_dict(torch.load("mlp.params"))
clone.eval()
accuracies = d2l.evaluate_accuracy(net, test_iter), d2l.evaluate_accuracy(clone, test_iter)
