"""Numbers translated from English to French by gated recurrent units with attention, and where they look.

d2l section "The Bahdanau Attention Mechanism". Run: python examples/translation_with_attention.py [PICTURE]; trained
for longer, with one command: pydl train seq2seq_attention;
pydl translate runs/seq2seq_attention "ninety nine thousand and one" --beam 4 --attention map.png
"""

import sys

import torch

import pydl
from pydl import data, models
from pydl.text import SentencePairs, beam_search, buckets, greedy
from pydl.text.pairs import PAD
from pydl.training import heatmaps
from pydl.training.translation import weights_of

numbers = data.get("numbers", trained=2000, tested=100)
source_vocab, vocab = numbers.source_vocab, numbers.target_vocab
train, test = (SentencePairs(part, source_vocab, vocab) for part in (numbers.train, numbers.test))

torch.manual_seed(0)
sizes = {"source_vocab_size": len(source_vocab), "vocab_size": len(vocab), "embedding": 32, "hidden": 64}
net = models.get("seq2seq_attention", **sizes, layers=1, dropout=0.0)
optimizer = pydl.optim.Adam(net.parameters(), lr=1e-2)
criterion = pydl.nn.CrossEntropyLoss(ignore_index=PAD)
for epoch in range(3):
    for batch in buckets(train.sizes, 40):
        (source, lengths, target), answer = train[batch]
        loss = criterion(net(source, lengths, target).flatten(0, 1), answer.flatten())
        optimizer.zero_grad()
        loss.backward()
        pydl.optim.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    print(f"epoch {epoch + 1}  loss of the last batch {loss.item():.4f}")

net.eval()
(source, lengths, _), _ = test[torch.arange(len(test))]
found = [" ".join(vocab.to_tokens(row)) for row in greedy(net, source, lengths, 20)]
right = [target for _, target in test.texts]
print(f"numbers it never saw, right word for word: {sum(map(str.__eq__, found, right)) / len(right):.3f}")

(source, lengths, _), _ = test[torch.tensor([0])]
written = vocab.to_tokens(beam_search(net, source, lengths, 20, beam=4))
words = test.texts[0][0].split()
weights = weights_of(net, source_vocab, vocab, words, written)
for row, word in zip(weights[0], [*written, "<eos>"], strict=True):
    place = int(row.argmax())
    print(f"{word:12} looks at {[*words, '<eos>'][place]} ({row[place]:.0%})")
if len(sys.argv) > 1:
    heatmaps.draw(sys.argv[1], [([*words, "<eos>"], [*written, "<eos>"], weights)], "where each word looked")
    print(f"{sys.argv[1]} shows it")
