"""Linear regression two ways: the closed form, in one step, beside minibatch descent towards the same weights.

The least squares' weights solve X'X w = X'y. That is exact and quick for a few columns, costs their cube, and exists
for few other models; descent needs a learning rate and many steps, and works for all that has a gradient.

d2l chapter "Linear Neural Networks for Regression". Run: python examples/linear_regression.py
"""

import torch

import pydl
from pydl import data, nn

linear = data.get("linear")
X, y = linear.train.images, linear.train.targets

with_ones = torch.cat([X, torch.ones(len(X), 1)], dim=1)  # the bias is the weight of a column of ones
closed = torch.linalg.lstsq(with_ones, y).solution.flatten()
print(f"closed form:       w = {closed[0]:.5f}, {closed[1]:.5f}  b = {closed[2]:.5f}  (true: 2, -3.4, 4.2)")

torch.manual_seed(0)
net, loss = nn.Linear(2, 1), nn.MSELoss()
optimizer = pydl.optim.SGD(net.parameters(), lr=0.03)
for epoch in range(1, 6):
    for batch in torch.randperm(len(X)).split(10):
        optimizer.zero_grad()
        loss(net(X[batch]), y[batch]).backward()
        optimizer.step()
    found = torch.cat([net.weight.flatten(), net.bias]).detach()
    print(f"descent, epoch {epoch}:  w = {found[0]:.5f}, {found[1]:.5f}  b = {found[2]:.5f}")

for name, weights in (("closed form", closed), ("descent", found)):
    predicted = linear.test.images @ weights[:2] + weights[2]
    print(f"{name}: test loss {loss(predicted, linear.test.targets.flatten()):.6f}")
print(f"largest difference: {(found - closed).abs().max():.5f}")
