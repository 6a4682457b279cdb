import torch

from pydl import d2l

d2l.show_heatmaps(torch.eye(10).reshape((1, 1, 10, 10)), xlabel="Keys", ylabel="Queries")
num_hiddens, num_heads = 100, 5
attention = d2l.MultiHeadAttention(num_hiddens, num_hiddens, num_hiddens, num_hiddens, num_heads, 0.5)
attention.eval()
batch_size, num_queries, num_kvpairs, valid_lens = 2, 4, 6, torch.tensor([3, 2])
X, Y = torch.ones((batch_size, num_queries, num_hiddens)), torch.ones((batch_size, num_kvpairs, num_hiddens))
shape = list(attention(X, Y, Y, valid_lens).shape)

encoding_dim, num_steps = 32, 60
pos_encoding = d2l.PositionalEncoding(encoding_dim, 0)
pos_encoding.eval()
X = pos_encoding(torch.zeros((1, num_steps, encoding_dim)))
P = pos_encoding.P[:, : X.shape[1], :]
d2l.plot(
    torch.arange(num_steps), P[0, :, 6:10].T, xlabel="Row (position)", figsize=(6, 2.5), legend=["6", "7", "8", "9"]
)
d2l.show_heatmaps(P[0].unsqueeze(0).unsqueeze(0), "Column", "Row", figsize=(3.5, 4), cmap="Blues")
