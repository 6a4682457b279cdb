import torch
from torch import nn
from torch.nn import functional as F

from pydl import d2l

data = d2l.FashionMNIST(batch_size=64)
print(len(data.train), len(data.val), data.train[0][0].shape)
data.visualize(next(iter(data.val_dataloader())))


class SoftmaxRegressionScratch(d2l.Classifier):
    def __init__(self, num_inputs, num_outputs, lr, sigma=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.W = torch.normal(0, sigma, size=(num_inputs, num_outputs), requires_grad=True)
        self.b = torch.zeros(num_outputs, requires_grad=True)

    def parameters(self):
        return [self.W, self.b]

    def forward(self, X):
        X_exp = torch.exp(X.reshape((-1, self.W.shape[0])) @ self.W + self.b)
        return X_exp / X_exp.sum(1, keepdims=True)


@d2l.add_to_class(SoftmaxRegressionScratch)
def loss(self, y_hat, y):
    return -torch.log(y_hat[list(range(len(y_hat))), y]).mean()


d2l.Trainer(max_epochs=2).fit(SoftmaxRegressionScratch(784, 10, lr=0.1), data)


class WeightDecay(d2l.LinearRegression):
    def __init__(self, wd, lr):
        super().__init__(lr)
        self.save_hyperparameters()
        self.wd = wd

    def configure_optimizers(self):
        return torch.optim.SGD(
            [{"params": self.net.weight, "weight_decay": self.wd}, {"params": self.net.bias}], lr=self.lr
        )


model = WeightDecay(wd=3, lr=0.01)
made_up = d2l.SyntheticRegressionData(torch.full((200,), 0.01), 0.05, num_train=20, num_val=100, batch_size=5)
model.board.yscale = "log"
model.apply_init([made_up.X])
d2l.Trainer(max_epochs=3).fit(model, made_up)


class LeNet(d2l.Classifier):
    def __init__(self, lr=0.1, num_classes=10):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.LazyConv2d(6, kernel_size=5, padding=2), nn.LazyBatchNorm2d(), nn.Sigmoid(), nn.AvgPool2d(2, 2),
            nn.LazyConv2d(16, kernel_size=5), nn.LazyBatchNorm2d(), nn.Sigmoid(), nn.AvgPool2d(2, 2), nn.Flatten(),
            nn.LazyLinear(120), nn.Sigmoid(), nn.LazyLinear(84), nn.Sigmoid(), nn.LazyLinear(num_classes),
        )  # fmt: skip


model = LeNet(lr=0.5)
model.layer_summary((1, 1, 28, 28))
trainer = d2l.Trainer(max_epochs=2, num_gpus=1, gradient_clip_val=5)
model.apply_init([next(iter(data.get_dataloader(True)))[0]], d2l.init_cnn)
trainer.fit(model, data)
images, labels = next(iter(data.val_dataloader()))
wrong = F.one_hot(model(images).argmax(1), 10).sum().item()
