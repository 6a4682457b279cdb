"""The book's loops: softmax regression (chapter 3), convolutional nets (6), and several devices (13)."""

import torch
from torch import nn

from pydl import optim
from pydl.d2l import serving
from pydl.d2l.animator import Animator
from pydl.d2l.counting import Accumulator, Timer, accuracy, evaluate_accuracy, evaluate_accuracy_gpu, moved
from pydl.d2l.drawing import show_images
from pydl.d2l.images import get_fashion_mnist_labels
from pydl.d2l.places import try_all_gpus, try_gpu

LEGEND = ("train loss", "train acc", "test acc")


def train_epoch_ch3(net, train_iter, loss, updater):
    """One epoch: (mean loss, share of right predictions).

    Args:
        net: a module or a function.
        loss: of each example, or the mean over them.
        updater: an optimizer, or a function of the batch size, such as :func:`sgd` makes.
    """
    if isinstance(net, nn.Module):
        net.train()
    metric = Accumulator(3)
    for X, y in train_iter:
        y_hat = net(X)
        found = loss(y_hat, y)
        if isinstance(updater, torch.optim.Optimizer):
            updater.zero_grad()
            found.mean().backward()
            updater.step()
        else:
            found.sum().backward()
            updater(len(y))
        metric.add(found.sum() if found.dim() else found * len(y), accuracy(y_hat, y), y.numel())
    return metric[0] / metric[2], metric[1] / metric[2]


def train_ch3(net, train_iter, test_iter, loss, num_epochs, updater, *, swap=True):
    """Trains for ``num_epochs`` epochs, with curves of the loss and both accuracies.

    Args:
        swap: keyword-only: whether :func:`pydl.swap` is called on a net that is a module.
    """
    swapped = serving.serve(net, swap)
    animator = Animator("epoch", legend=LEGEND, xlim=[1, num_epochs])
    timer = Timer()
    with serving.training(swapped, updater):
        for epoch in range(num_epochs):
            found = train_epoch_ch3(net, train_iter, loss, updater)
            animator.add(epoch + 1, (*found, evaluate_accuracy(net, test_iter)))
    seconds = timer.stop()
    print(f"loss {found[0]:.3f}, train acc {found[1]:.3f}, test acc {animator.Y[2][-1]:.3f}")
    if swapped:
        X, y = next(iter(train_iter))
        serving.tell(net, lambda net: loss(net(X), y).mean(), seconds)


def predict_ch3(net, test_iter, n=6):
    """Draws ``n`` images of the first batch under their true and predicted names."""
    X, y = next(iter(test_iter))
    with torch.no_grad():
        predicted = net(X[:n]).argmax(dim=1)
    names = zip(get_fashion_mnist_labels(y[:n]), get_fashion_mnist_labels(predicted), strict=True)
    show_images(X[:n, 0], 1, len(predicted), titles=[f"{true}\n{found}" for true, found in names])


def init_cnn(module):
    """Glorot's uniform distribution for the weights of a linear or a convolution layer; to be applied to a net."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)


def train_ch6(net, train_iter, test_iter, num_epochs, lr, device=None, *, swap=True):
    """Trains by SGD and cross entropy from Glorot's initial weights, with curves and examples per second.

    Args:
        device: where; :func:`try_gpu`'s if None.
        swap: keyword-only: whether :func:`pydl.swap` is called on the net.
    """
    device = try_gpu() if device is None else device
    net.apply(init_cnn)
    net.to(device)
    print("training on", device)
    swapped = serving.serve(net, swap)
    loss = nn.CrossEntropyLoss()
    if swapped:
        serving.serve(loss, swap)
    trainer = torch.optim.SGD(net.parameters(), lr=lr)

    def train_batch(X, y):
        X, y = moved(X, device), moved(y, device)
        trainer.zero_grad()
        y_hat = net(X)
        found = loss(y_hat, y)
        found.backward()
        trainer.step()
        return found.detach() * len(y), accuracy(y_hat, y)

    def test():
        return evaluate_accuracy_gpu(net, test_iter, device)

    with serving.training(swapped, trainer):
        seconds = _epochs(net, train_iter, num_epochs, train_batch, test, str(device))
    if swapped:
        X, y = (moved(tensor, device) for tensor in next(iter(train_iter)))
        serving.tell(net, lambda net: loss(net(X), y), seconds)


def _epochs(net, train_iter, num_epochs, train_batch, test, where):
    """Calls ``train_batch`` (the sums of loss and right predictions of a batch), draws, prints; returns the seconds."""
    animator = Animator("epoch", legend=LEGEND, xlim=[1, num_epochs])
    timer, num_batches = Timer(), len(train_iter)
    examples = 0
    for epoch in range(num_epochs):
        net.train()
        metric = Accumulator(3)
        for i, (X, y) in enumerate(train_iter):
            timer.start()
            metric.add(*train_batch(X, y), y.numel())
            timer.stop()
            if (i + 1) % max(num_batches // 5, 1) == 0 or i == num_batches - 1:
                train_loss, train_acc = metric[0] / metric[2], metric[1] / metric[2]
                animator.add(epoch + (i + 1) / num_batches, (train_loss, train_acc, None))
        test_acc = test()
        animator.add(epoch + 1, (None, None, test_acc))
        examples += metric[2]
    print(f"loss {train_loss:.3f}, train acc {train_acc:.3f}, test acc {test_acc:.3f}")
    print(f"{examples / timer.sum():.1f} examples/sec on {where}")
    return timer.sum()


def train_batch_ch13(net, X, y, loss, trainer, devices):
    """A step: (sum of the loss, right predictions). ``X`` may be a list of tensors; ``loss`` is each example's."""
    X, y = moved(X, devices[0]), moved(y, devices[0])
    net.train()
    trainer.zero_grad()
    predicted = net(X)
    found = loss(predicted, y)
    found.sum().backward()
    trainer.step()
    return found.detach().sum(), accuracy(predicted, y)


def train_ch13(net, train_iter, test_iter, loss, trainer, num_epochs, devices=None, *, swap=True):
    """Trains with an optimizer of one's own, on several GPUs where there are (``DataParallel``).

    Args:
        loss: of each example.
        devices: a list; :func:`try_all_gpus`'s if None.
        swap: keyword-only: whether :func:`pydl.swap` is called on the net.
    """
    devices = try_all_gpus() if devices is None else devices
    net.to(devices[0])
    swapped = serving.serve(net, swap)
    spread = nn.DataParallel(net, device_ids=devices) if len(devices) > 1 else net
    with serving.training(swapped, trainer):
        seconds = _epochs(
            spread,
            train_iter,
            num_epochs,
            lambda X, y: train_batch_ch13(spread, X, y, loss, trainer, devices),
            lambda: evaluate_accuracy_gpu(spread, test_iter, devices[0]),
            ", ".join(map(str, devices)),
        )
    if swapped:
        X, y = (moved(tensor, devices[0]) for tensor in next(iter(train_iter)))
        serving.tell(net, lambda net: loss(net(X), y).sum(), seconds)


def grad_clipping(net, theta):
    """Scales all gradients so that their joint norm is at most ``theta``; ``net`` is a module, or has ``params``."""
    params = net.parameters() if isinstance(net, nn.Module) else net.params
    params = [p for p in params if p.requires_grad and p.grad is not None]
    optim.clip_grad_norm_(params, theta)
