import torch
from torch import nn

from pydl import d2l

true_w, true_b = torch.tensor([2, -3.4]), 4.2
features, labels = d2l.synthetic_data(true_w, true_b, 1000)
data_iter = d2l.load_array((features, labels), 10)
next(iter(data_iter))

net = nn.Sequential(nn.Linear(2, 1))
net[0].weight.data.normal_(0, 0.01)
net[0].bias.data.fill_(0)
loss = nn.MSELoss()
trainer = torch.optim.SGD(net.parameters(), lr=0.03)
for epoch in range(3):
    for X, y in data_iter:
        error = loss(net(X), y)
        trainer.zero_grad()
        error.backward()
        trainer.step()
    print(f"epoch {epoch + 1}, loss {loss(net(features), labels):f}")
