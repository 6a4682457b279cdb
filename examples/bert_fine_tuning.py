"""BERT learns from sentences without labels; then it classifies sentences from few labels, beside one from scratch.

d2l sections "Pretraining BERT" and "Fine-Tuning BERT". Run: python examples/bert_fine_tuning.py; trained for
longer, with two commands: pydl train bert; pydl train bert_classifier --weights runs/bert
"""

import torch

import pydl
from pydl import data, models
from pydl.data.sentences import CLS, MASK, PAD, SEP
from pydl.text.masked import IGNORED, Labelled, MaskedPairs

prose = data.sentences("prose", least=2)
vocab, reserved = prose.vocab, (PAD, MASK, CLS, SEP)
sizes = {"vocab_size": len(vocab), "hidden": 64, "dropout": 0.0}
pairs = MaskedPairs([[vocab[line] for line in lines] for _, lines in prose.train], 32, reserved, len(vocab))

torch.manual_seed(0)
bert = models.get("bert", **sizes)
words, follow = pydl.nn.CrossEntropyLoss(ignore_index=IGNORED), pydl.nn.CrossEntropyLoss()
optimizer = pydl.optim.AdamW(bert.parameters(), lr=3e-3)
for epoch in range(12):
    pairs.draw()  # which second sentences follow, and what is masked
    losses = []
    for batch in torch.randperm(len(pairs)).split(32):
        inputs, (answers, follows) = pairs[batch]
        logits, order = bert(*inputs)
        loss = words(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        (loss + follow(order, follows)).backward()
        pydl.optim.clip_grad_norm_(bert.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}  loss of a masked word {sum(losses) / len(losses):.3f}")

topics = data.topics("prose", least=2)  # the topic group of 200 sentences; tests are sentences of other topics
train, test = (Labelled([vocab[w] for w, _ in p], [k for _, k in p], 32, reserved) for p in (topics.train, topics.test))


def accuracy(weights):
    """Of a classifier that begins with ``weights``, or from scratch, on the test's sentences."""
    torch.manual_seed(0)
    net = models.get("bert_classifier", num_classes=len(topics.classes), **sizes)
    if weights is not None:
        net.load_state_dict(net.own_names(weights))  # the body; the last layer stays new
    optimizer = pydl.optim.AdamW(net.parameters(), lr=5e-4)
    for _ in range(15):
        for batch in torch.randperm(len(train)).split(20):
            inputs, targets = train[batch]
            loss = follow(net(*inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    inputs, targets = test[torch.arange(len(test))]
    return (net.eval()(*inputs).argmax(1) == targets).double().mean().item()


print(f"one of {len(topics.classes)} groups, right from scratch: {accuracy(None):.3f}")
print(f"one of {len(topics.classes)} groups, right after pretraining: {accuracy(bert.state_dict()):.3f}")
