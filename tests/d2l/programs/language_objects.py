import torch
from torch import nn

from pydl import d2l

data = d2l.TimeMachine(batch_size=256, num_steps=16, num_train=768, num_val=256)
rnn = d2l.RNNScratch(num_inputs=len(data.vocab), num_hiddens=32)
model = d2l.RNNLMScratch(rnn, vocab_size=len(data.vocab), lr=1)
d2l.check_shape(model(torch.ones((2, 16), dtype=torch.int64)), (2, 16, len(data.vocab)))
before = model.predict("it has", 20, data.vocab)
trainer = d2l.Trainer(max_epochs=4, gradient_clip_val=1, num_gpus=1)
trainer.fit(model, data)
perplexities = model.board.data["val_ppl"][1]
after = model.predict("it has", 20, data.vocab, d2l.try_gpu())


class LSTM(d2l.RNN):
    def __init__(self, num_inputs, num_hiddens):
        d2l.Module.__init__(self)
        self.save_hyperparameters()
        self.rnn = nn.LSTM(num_inputs, num_hiddens)

    def forward(self, inputs, H_C=None):
        return self.rnn(inputs, H_C)


gru = d2l.GRU(num_inputs=len(data.vocab), num_hiddens=32, num_layers=2)
for layer in (gru, LSTM(len(data.vocab), 32)):
    model = d2l.RNNLM(layer, vocab_size=len(data.vocab), lr=2)
    d2l.Trainer(max_epochs=1, gradient_clip_val=1).fit(model, data)
    print(model.predict("it has", 20, data.vocab))
