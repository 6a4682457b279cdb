"""A gated recurrent unit from scratch that learns to spell, and the same numbers from the layer `pydl.nn.GRU`.

d2l section "Gated Recurrent Units (GRU)". Run: python examples/gru_from_scratch.py; trained for longer, with one
command: pydl train gru_lm; pydl generate runs/gru_lm "the value of "
"""

import torch

import pydl
from pydl import data
from pydl.functional import cross_entropy
from pydl.text import Windows, continued, perplexity, random_starts

prose = data.get("prose")  # 28 tokens: letters, the blank, the unknown
vocab_size, hidden, steps = len(prose.classes), 64, 32

torch.manual_seed(0)


def parameter(*shape):
    return torch.nn.Parameter(hidden**-0.5 * (2 * torch.rand(shape) - 1))


# rows of reset gate, update gate, candidate, one below the other as the layer has them
W_x, W_h = parameter(3 * hidden, vocab_size), parameter(3 * hidden, hidden)
b_x, b_h = parameter(3 * hidden), parameter(3 * hidden)
W_out, b_out = parameter(vocab_size, hidden), parameter(vocab_size)


def gru(inputs, H):
    """Outputs (T, N, hidden) and the last state (N, hidden) of one-hot inputs (T, N, vocab_size)."""
    outputs = []
    for X in inputs:
        xr, xz, xn = (X @ W_x.T + b_x).chunk(3, 1)
        hr, hz, hn = (H @ W_h.T + b_h).chunk(3, 1)
        R, Z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        H = Z * H + (1 - Z) * torch.tanh(xn + R * hn)
        outputs.append(H)
    return torch.stack(outputs), H


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.all = torch.nn.ParameterList([W_x, W_h, b_x, b_h, W_out, b_out])

    def forward(self, tokens, H=None):
        inputs = torch.nn.functional.one_hot(tokens.T, vocab_size).float()
        outputs, H = gru(inputs, torch.zeros(len(tokens), hidden) if H is None else H)
        return (outputs @ W_out.T + b_out).transpose(0, 1), H


net, windows = Net(), Windows(prose.train, steps)
optimizer = pydl.optim.Adam(net.parameters(), lr=1e-2)
for number, starts in enumerate(random_starts(len(windows), 64, steps)[:80]):
    X, Y = windows[starts]
    loss = cross_entropy(net(X)[0].flatten(0, 1), Y.flatten())
    optimizer.zero_grad()
    loss.backward()
    pydl.optim.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    if number % 20 == 0:
        print(f"step {number}  perplexity {perplexity(loss.item()):.1f}")
print(f"it chooses among {perplexity(loss.item()):.1f} letters where it began with {vocab_size}")
start = prose.tokenizer.encode_known("the value of ")
print(prose.tokenizer.decode(start + continued(net, start, 60, temperature=0.5)))

layer = pydl.nn.GRU(vocab_size, hidden)
layer.load_state_dict(dict(zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), net.all, strict=False)))
inputs = torch.nn.functional.one_hot(X.T, vocab_size).float()
difference = (layer(inputs)[0] - gru(inputs, torch.zeros(len(X), hidden))[0]).abs().max()
print(f"outputs of pydl.nn.GRU agree: {bool(difference < 1e-5):d}")
