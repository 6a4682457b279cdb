from torch import nn

from pydl import d2l

# an image of 64 pixels, and an eighth of the channels: the book has 224
net = nn.Sequential(
    nn.Conv2d(1, 12, kernel_size=11, stride=2, padding=1), nn.ReLU(),
    nn.MaxPool2d(kernel_size=3, stride=2),
    nn.Conv2d(12, 32, kernel_size=5, padding=2), nn.ReLU(),
    nn.MaxPool2d(kernel_size=3, stride=2),
    nn.Conv2d(32, 48, kernel_size=3, padding=1), nn.ReLU(),
    nn.Conv2d(48, 48, kernel_size=3, padding=1), nn.ReLU(),
    nn.Conv2d(48, 32, kernel_size=3, padding=1), nn.ReLU(),
    nn.MaxPool2d(kernel_size=3, stride=2),
    nn.Flatten(),
    nn.Linear(32 * 2 * 2, 256), nn.ReLU(), nn.Dropout(p=0.5),
    nn.Linear(256, 256), nn.ReLU(), nn.Dropout(p=0.5),
    nn.Linear(256, 10),
)  # fmt: skip

batch_size = 32
train_iter, test_iter = d2l.load_data_fashion_mnist(batch_size, resize=64)
X = next(iter(train_iter))[0]
for layer in net:
    X = layer(X)
    print(layer.__class__.__name__, "output shape:\t", X.shape)
lr, num_epochs = 0.01, 1
d2l.train_ch6(net, train_iter, test_iter, num_epochs, lr, d2l.try_gpu())
