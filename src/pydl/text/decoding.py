"""What a translator writes: the likeliest word again and again, or the best of several sentences (beam search).

A translator has ``begin(source (N, S), lengths (N,))``, the state before the first word, ``decode(target (N, T),
state)``, which gives (logits (N, T, V), the next state, weights), and ``take(state, rows)``, the state of some rows.
"""

import math

import torch

from pydl.text.pairs import BOS, EOS

PENALTY = 0.75  # a sentence's log-probability is divided by its length to this power, as the book has it


def _scores(model, tokens, state):
    """(logarithms of the next token's probabilities (N, V), state); all but words and ``<eos>`` are out of question."""
    logits, state, _ = model.decode(tokens, state)
    scores = logits[:, -1].double()
    scores[:, :EOS] = -math.inf
    return scores.log_softmax(1), state


@torch.no_grad()
def greedy(model, source, lengths, longest):
    """Lists of the token numbers, ``<eos>`` left out, that the likeliest next word makes; at most ``longest`` each."""
    state, tokens = model.begin(source, lengths), source.new_full((len(source), 1), BOS)
    written = []
    done = torch.zeros(len(source), dtype=torch.bool, device=source.device)
    while len(written) < longest and not bool(done.all()):
        scores, state = _scores(model, tokens, state)
        tokens = scores.argmax(1, keepdim=True)
        done |= tokens[:, 0] == EOS
        written.append(tokens)
    rows = torch.cat(written, 1).tolist() if written else [[] for _ in source]
    return [row[: row.index(EOS)] if EOS in row else row for row in rows]


@torch.no_grad()
def beam_search(model, source, lengths, longest, beam):
    """The token numbers of the best sentence found for one source (1, S), where ``beam`` unfinished ones are kept.

    Sentences are compared by their log-probability over their length to the power 0.75. With ``beam=1`` it is
    :func:`greedy`.

    Source: d2l section "Beam Search".
    """
    state = model.take(model.begin(source, lengths), torch.zeros(1, dtype=torch.int64, device=source.device))
    alive, total, finished = [[]], torch.zeros(1, dtype=torch.float64, device=source.device), []
    for length in range(1, longest + 1):
        last = [[row[-1] if row else BOS] for row in alive]
        scores, state = _scores(model, source.new_tensor(last), state)
        scores = scores + total[:, None]
        values, places = scores.flatten().topk(min(2 * beam, scores.numel()))
        rows, kept, sums = [], [], []
        for rank, (value, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            row, word = divmod(place, scores.shape[1])
            if value == -math.inf:
                break
            if word == EOS:
                if rank < beam:  # one that lesser words would have driven out is none of the best
                    finished.append((value / length**PENALTY, alive[row]))
            elif len(rows) < beam:
                rows.append(row), kept.append([*alive[row], word]), sums.append(value)
        if len(finished) >= beam or not rows:
            break
        state = model.take(state, source.new_tensor(rows))
        alive, total = kept, total.new_tensor(sums)
    else:
        finished += [(value / longest**PENALTY, row) for value, row in zip(total.tolist(), alive, strict=True)]
    return max(finished)[1]
