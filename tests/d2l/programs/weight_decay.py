import torch
from torch import nn

from pydl import d2l

n_train, n_test, num_inputs, batch_size = 20, 100, 200, 5
true_w, true_b = torch.ones((num_inputs, 1)) * 0.01, 0.05
train_data = d2l.synthetic_data(true_w, true_b, n_train)
train_iter = d2l.load_array(train_data, batch_size)
test_data = d2l.synthetic_data(true_w, true_b, n_test)
test_iter = d2l.load_array(test_data, batch_size, is_train=False)


def train_scratch(lambd, num_epochs=30, lr=0.003):
    w = torch.normal(0, 1, size=(num_inputs, 1), requires_grad=True)
    b = torch.zeros(1, requires_grad=True)

    def net(X):
        return d2l.linreg(X, w, b)

    animator = d2l.Animator(
        xlabel="epochs", ylabel="loss", yscale="log", xlim=[5, num_epochs], legend=["train", "test"]
    )
    for epoch in range(num_epochs):
        for X, y in train_iter:
            loss_value = d2l.squared_loss(net(X), y) + lambd * torch.sum(w.pow(2)) / 2
            loss_value.sum().backward()
            d2l.sgd([w, b], lr, batch_size)
        if (epoch + 1) % 5 == 0:
            train_l, test_l = (d2l.evaluate_loss(net, data, d2l.squared_loss) for data in (train_iter, test_iter))
            animator.add(epoch + 1, (train_l, test_l))
    return torch.norm(w).item()


def train_concise(wd, num_epochs=30, lr=0.003):
    net = nn.Sequential(nn.Linear(num_inputs, 1))
    for param in net.parameters():
        param.data.normal_()
    loss = nn.MSELoss(reduction="none")
    trainer = torch.optim.SGD([{"params": net[0].weight, "weight_decay": wd}, {"params": net[0].bias}], lr=lr)
    animator = d2l.Animator(
        xlabel="epochs", ylabel="loss", yscale="log", xlim=[5, num_epochs], legend=["train", "test"]
    )
    for epoch in range(num_epochs):
        for X, y in train_iter:
            trainer.zero_grad()
            loss(net(X), y).mean().backward()
            trainer.step()
        if (epoch + 1) % 5 == 0:
            animator.add(epoch + 1, (d2l.evaluate_loss(net, train_iter, loss), d2l.evaluate_loss(net, test_iter, loss)))
    return net[0].weight.norm().item()


norms = [train_scratch(0), train_scratch(3), train_concise(0), train_concise(3)]
