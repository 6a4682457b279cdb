import math

import torch

from pydl import d2l

board = d2l.ProgressBoard("x")
for x in torch.arange(0, 10, 0.1):
    board.draw(x, torch.sin(x), "sin", every_n=2)
    board.draw(x, math.cos(x), "cos", every_n=10)


class A:
    def __init__(self):
        self.b = 1


@d2l.add_to_class(A)
def do(self):
    return f'Class attribute "b" is {self.b}'


said = A().do()


class B(d2l.HyperParameters):
    def __init__(self, a, b, c):
        self.save_hyperparameters(ignore=["c"])


kept = [B(a=1, b=2, c=3).a, B(a=1, b=2, c=3).b, int(hasattr(B(a=1, b=2, c=3), "c"))]

data = d2l.SyntheticRegressionData(w=torch.tensor([2, -3.4]), b=4.2)
model = d2l.LinearRegressionScratch(2, lr=0.03)
trainer = d2l.Trainer(max_epochs=3)
trainer.fit(model, data)
with torch.no_grad():
    error_in_w = data.w - model.w.reshape(data.w.shape)

model = d2l.LinearRegression(lr=0.03)
trainer = d2l.Trainer(max_epochs=3)
trainer.fit(model, data)
w, b = model.get_w_b()
concise_error = data.w - w.reshape(data.w.shape)
