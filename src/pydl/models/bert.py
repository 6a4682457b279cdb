"""BERT: a Transformer's encoder that reads both ways, under the names of its published weights."""

import torch
from torch import nn
from torch.nn import Module, ModuleList, Parameter

from pydl.functional import linear, scaled_dot_product_attention
from pydl.models._registry import check_at_least, register
from pydl.nn import GELU, Dropout, Embedding, LayerNorm, Linear, Tanh

STD = 0.02 * 768**0.5  # of first weights, over the root of the width: BERT's own 0.02 at its own width of 768
EPS = 1e-12


class Embeddings(Module):
    """Embedded tokens, positions and segments, added up, normalised."""

    def __init__(self, vocab_size, hidden, positions, dropout):
        super().__init__()
        self.word_embeddings = Embedding(vocab_size, hidden)
        self.position_embeddings = Embedding(positions, hidden)
        self.token_type_embeddings = Embedding(2, hidden)
        self.LayerNorm, self.dropout = LayerNorm(hidden, EPS), Dropout(dropout)

    def forward(self, tokens, segments):
        places = self.position_embeddings.weight[: tokens.shape[1]]
        x = self.word_embeddings(tokens) + self.token_type_embeddings(segments) + places
        return self.dropout(self.LayerNorm(x))


class SelfAttention(Module):
    """Every token looks at all valid tokens, in several heads."""

    def __init__(self, hidden, heads, dropout):
        super().__init__()
        self.heads, self.p = heads, dropout
        self.query, self.key, self.value = (Linear(hidden, hidden) for _ in range(3))

    def forward(self, x, lengths):
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        p = self.p if self.training else 0.0
        return scaled_dot_product_attention(q, k, v, None, p, lengths=lengths).transpose(1, 2).flatten(2)


class Output(Module):
    """``LayerNorm(x + dropout(dense(y)))``: the end of both halves of a layer."""

    def __init__(self, inputs, hidden, dropout):
        super().__init__()
        self.dense, self.LayerNorm, self.dropout = Linear(inputs, hidden), LayerNorm(hidden, EPS), Dropout(dropout)

    def forward(self, y, x):
        return self.LayerNorm(x + self.dropout(self.dense(y)))


class Attention(Module):
    def __init__(self, hidden, heads, dropout):
        super().__init__()
        self.self, self.output = SelfAttention(hidden, heads, dropout), Output(hidden, hidden, dropout)

    def forward(self, x, lengths):
        return self.output(self.self(x, lengths), x)


class Dense(Module):
    """An affine layer and an activation."""

    def __init__(self, inputs, outputs, activation):
        super().__init__()
        self.dense, self.activation = Linear(inputs, outputs), activation

    def forward(self, x):
        return self.activation(self.dense(x))


class Layer(Module):
    """Attention, and a net four times as wide at each token."""

    def __init__(self, hidden, heads, dropout):
        super().__init__()
        self.attention = Attention(hidden, heads, dropout)
        self.intermediate = Dense(hidden, 4 * hidden, GELU())
        self.output = Output(4 * hidden, hidden, dropout)

    def forward(self, x, lengths):
        x = self.attention(x, lengths)
        return self.output(self.intermediate(x), x)


class Encoder(Module):
    def __init__(self, layers):
        super().__init__()
        self.layer = ModuleList(layers)

    def forward(self, x, lengths):
        for layer in self.layer:
            x = layer(x, lengths)
        return x


class Body(Module):
    """What all of BERT's tasks share: (each token's vector (N, T, hidden), a vector of the whole (N, hidden))."""

    def __init__(self, vocab_size, hidden, layers, heads, positions, dropout):
        super().__init__()
        self.positions = positions
        self.embeddings = Embeddings(vocab_size, hidden, positions, dropout)
        self.encoder = Encoder(Layer(hidden, heads, dropout) for _ in range(layers))
        self.pooler = Dense(hidden, hidden, Tanh())

    def forward(self, tokens, segments, lengths):
        if tokens.shape[1] > self.positions:
            raise ValueError(f"bert: expected at most {self.positions} tokens, one a position, got {tokens.shape[1]}")
        x = self.encoder(self.embeddings(tokens, segments), lengths)
        return x, self.pooler(x[:, 0])


class Predictions(Module):
    """Logits of the masked tokens, by the transposed embedding."""

    def __init__(self, vocab_size, hidden):
        super().__init__()
        self.transform = Transform(hidden)
        self.bias = Parameter(torch.zeros(vocab_size))

    def forward(self, x, embedding):
        return linear(self.transform(x), embedding, self.bias)


class Transform(Dense):
    """An affine layer, GELU and a norm."""

    def __init__(self, hidden):
        super().__init__(hidden, hidden, GELU())
        self.LayerNorm = LayerNorm(hidden, EPS)

    def forward(self, x):
        return self.LayerNorm(super().forward(x))


class Heads(Module):
    def __init__(self, vocab_size, hidden):
        super().__init__()
        self.predictions, self.seq_relationship = Predictions(vocab_size, hidden), Linear(hidden, 2)


def _initialise(model, hidden):
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=STD * hidden**-0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def _own_names(state):
    """A state_dict as BERT's are published under this module's names; the tied last layer and counts are left out."""
    found = {}
    prefix = "" if any(name.startswith("bert.") for name in state) else "bert."  # files of the body alone
    for name, tensor in state.items():
        name = name if name.startswith(("cls.", "classifier.")) else prefix + name
        head, _, kind = name.rpartition(".")
        name = f"{head}.{ {'gamma': 'weight', 'beta': 'bias'}.get(kind, kind) }" if head else name
        if name == "cls.predictions.decoder.bias":
            name = "cls.predictions.bias"
        if name not in ("cls.predictions.decoder.weight", "bert.embeddings.position_ids"):
            found[name] = tensor
    return found


class Bert(Module):
    """The body with heads for masked tokens and for whether the second sentence follows the first."""

    def __init__(self, vocab_size, hidden, *sizes):
        super().__init__()
        self.bert, self.cls = Body(vocab_size, hidden, *sizes), Heads(vocab_size, hidden)
        _initialise(self, hidden)

    own_names = staticmethod(_own_names)

    def forward(self, tokens, segments, lengths, places):
        """(logits (N, P, V) of the tokens that stood at ``places`` (N, P), logits (N, 2): follows, does not).

        Args:
            tokens, segments: (N, T), the segments 0 and 1.
            lengths: (N,), how many tokens of each row are valid.
        """
        x, pooled = self.bert(tokens, segments, lengths)
        at = x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))
        logits = self.cls.predictions(at, self.bert.embeddings.word_embeddings.weight)
        return logits, self.cls.seq_relationship(pooled)


class BertClassifier(Module):
    """The body with an affine layer from the vector of the whole to classes."""

    def __init__(self, num_classes, vocab_size, hidden, layers, heads, positions, dropout):
        super().__init__()
        self.bert = Body(vocab_size, hidden, layers, heads, positions, dropout)
        self.dropout, self.classifier = Dropout(dropout), Linear(hidden, num_classes)
        _initialise(self, hidden)

    def own_names(self, state):
        """As of :class:`Bert`, whose heads are left out; the last layer stays as it is where ``state`` has none."""
        found = {name: tensor for name, tensor in _own_names(state).items() if not name.startswith("cls.")}
        own = {f"classifier.{name}": tensor for name, tensor in self.classifier.state_dict().items()}
        return {**own, **found}

    def forward(self, tokens, segments, lengths):
        """Logits (N, num_classes); arguments as of :class:`Bert`."""
        return self.classifier(self.dropout(self.bert(tokens, segments, lengths)[1]))


def _check(name, hidden, heads, **sizes):
    check_at_least(name, hidden=hidden, heads=heads, **sizes)
    if hidden % heads:
        raise ValueError(f"{name}: expected heads to divide hidden, {hidden}, got {heads}")


@register("masked")
def bert(vocab_size=2000, hidden=128, layers=2, heads=2, positions=64, dropout=0.1):
    """BERT, to be trained on masked tokens and on which sentence follows which.

    Its parameters have the names of the published weights: BERT-base is ``vocab_size=30522, hidden=768, layers=12,
    heads=12, positions=512``.

    Source: d2l section "Bidirectional Encoder Representations from Transformers (BERT)"; Devlin, Chang, Lee and
    Toutanova, NAACL 2019.
    Input: (N, T), (N, T), (N,), (N, P). Output: (N, P, 2000), or (N, P, vocab_size), and (N, 2).
    Parameters: 696,786.
    FLOPs: 786,432 a token in the layers, 544,768 a masked token.

    Raises:
        ValueError: for a size below 1, heads that do not divide ``hidden``, and in the forward for more tokens than
            positions.
    """
    _check("bert", hidden, heads, layers=layers, positions=positions)
    return Bert(vocab_size, hidden, layers, heads, positions, dropout)


@register("topics")
def bert_classifier(num_classes=6, vocab_size=2000, hidden=128, layers=2, heads=2, positions=64, dropout=0.1):
    """BERT with an affine layer to classes of sentences; begins with the weights of a run of ``bert`` by ``--weights``.

    Source: d2l section "Fine-Tuning BERT for Sequence-Level and Token-Level Applications"; Devlin et al., NAACL 2019.
    Input: (N, T), (N, T), (N,). Output: (N, 6), or (N, num_classes).
    Parameters: 678,534.
    FLOPs: 786,432 a token in the layers.

    Raises:
        ValueError: as :func:`bert`.
    """
    _check("bert_classifier", hidden, heads, layers=layers, positions=positions)
    return BertClassifier(num_classes, vocab_size, hidden, layers, heads, positions, dropout)
