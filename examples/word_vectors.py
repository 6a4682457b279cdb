"""Word vectors by word2vec's bag of words: which words end up near each other, and a map of them.

d2l sections "Word Embedding (word2vec)" and "Pretraining word2vec". Run: python examples/word_vectors.py [PICTURE];
with one command: pydl train cbow; pydl neighbours runs/cbow integer
"""

import sys

import torch
import torch.nn.functional as F

import pydl
from pydl import data, models
from pydl.data.sentences import FIRST_WORD, PAD
from pydl.text import ContextWords
from pydl.text.word_pairs import PAIRS, found, neighbours
from pydl.training import word_map

prose = data.sentences("prose", least=5)
vocab = prose.vocab
lines = [vocab[[word for word in line if word in vocab]] for _, lines in prose.train for line in lines]
counts = torch.bincount(torch.tensor([number for line in lines for number in line]), minlength=len(vocab))

torch.manual_seed(0)
net = models.get("cbow", vocab_size=len(vocab))
words = ContextWords(lines, counts, net.window, net.negatives, net.rate, PAD, net.around)
optimizer = pydl.optim.Adam(net.parameters(), lr=0.01)
print(f"pairs of words that are near before training: {found(net.inputs.weight.detach(), vocab, PAIRS, FIRST_WORD)[0]}")
for epoch in range(5):
    for batch in torch.randperm(words.draw()).split(512):  # draws windows and noise words anew
        (around, candidates), targets = words[batch]
        counted = targets >= 0  # where no candidate stands the target is -1
        loss = F.binary_cross_entropy_with_logits(net(around, candidates)[counted], targets[counted])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}  loss of the last batch {loss.item():.4f}")

vectors = net.inputs.weight.detach()
for word in ("integer", "left", "finally", "bacon"):
    numbers, _ = neighbours(vectors, vocab[word], 5, FIRST_WORD)
    print(f"{word:8} is near {', '.join(vocab.to_tokens(numbers))}")
print(f"pairs of words that are near after training: {found(vectors, vocab, PAIRS, FIRST_WORD)[0]}")
if len(sys.argv) > 1:
    pairs = [pair for pair in PAIRS if all(word in vocab for word in pair)]
    shown = sorted({word for pair in pairs for word in pair})
    word_map.draw(sys.argv[1], vectors[vocab[shown]], shown, pairs, "cbow on prose")
    print(f"{sys.argv[1]} shows them")
