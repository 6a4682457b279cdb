import torch

from pydl import d2l

batch_size = 256
train_iter, test_iter = d2l.load_data_fashion_mnist(batch_size)
X, y = next(iter(train_iter))
d2l.show_images(X[:18].reshape(18, 28, 28), 2, 9, titles=d2l.get_fashion_mnist_labels(y[:18]))

W = torch.normal(0, 0.01, size=(784, 10), requires_grad=True)
b = torch.zeros(10, requires_grad=True)


def softmax(X):
    X_exp = torch.exp(X)
    return X_exp / X_exp.sum(1, keepdim=True)


def net(X):
    return softmax(torch.matmul(X.reshape((-1, W.shape[0])), W) + b)


def cross_entropy(y_hat, y):
    return -torch.log(y_hat[range(len(y_hat)), y])


before = d2l.evaluate_accuracy(net, test_iter)


def updater(batch_size):
    return d2l.sgd([W, b], 0.1, batch_size)


d2l.train_ch3(net, train_iter, test_iter, cross_entropy, 10, updater)
d2l.predict_ch3(net, test_iter)
