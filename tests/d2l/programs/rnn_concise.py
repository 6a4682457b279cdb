from torch import nn

from pydl import d2l

words = d2l.Vocab([word for line in d2l.tokenize(d2l.read_time_machine()) for word in line])
freqs = [freq for token, freq in words.token_freqs]
d2l.plot(freqs, xlabel="token: x", ylabel="frequency: n(x)", xscale="log", yscale="log")

batch_size, num_steps = 32, 35
train_iter, vocab = d2l.load_data_time_machine(batch_size, num_steps, max_tokens=6000)
device = d2l.try_gpu()
for layer in (nn.RNN(len(vocab), 32), nn.GRU(len(vocab), 32), nn.LSTM(len(vocab), 32, 2)):
    net = d2l.RNNModel(layer, vocab_size=len(vocab)).to(device)
    d2l.train_ch8(net, train_iter, vocab, 2, 5, device)
