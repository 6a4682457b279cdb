import torch

from pydl import d2l

true_w, true_b = torch.tensor([2, -3.4]), 4.2
features, labels = d2l.synthetic_data(true_w, true_b, 1000)

d2l.set_figsize()
d2l.plt.scatter(features[:, 1].numpy(), labels.numpy(), 1)

w = torch.normal(0, 0.01, size=(2, 1), requires_grad=True)
b = torch.zeros(1, requires_grad=True)
lr, num_epochs, batch_size = 0.03, 3, 10

for epoch in range(num_epochs):
    for X, y in d2l.data_iter(batch_size, features, labels):
        d2l.squared_loss(d2l.linreg(X, w, b), y).sum().backward()
        d2l.sgd([w, b], lr, batch_size)
    with torch.no_grad():
        train_l = d2l.squared_loss(d2l.linreg(features, w, b), labels)
        print(f"epoch {epoch + 1}, loss {float(train_l.mean()):f}")

timer = d2l.Timer()
features @ w
print(f"{timer.stop():.5f} sec")
x = torch.arange(-7, 7, 0.01)
normals = [torch.exp(-0.5 * (x - mu) ** 2 / sigma**2) / (6.283 * sigma**2) ** 0.5 for mu, sigma in ((0, 1), (3, 1))]
d2l.plot(x, normals, xlabel="x", ylabel="p(x)", figsize=(4.5, 2.5), legend=["mean 0", "mean 3"])
