"""BERT by torch's own encoder layers, fed from weights under BERT's published names: what pydl's is compared with."""

import torch
import torch.nn.functional as F


def published(vocab_size, hidden, layers, positions):
    """Random weights under the names that BertForPreTraining is published with, the tied last layer among them."""
    generator = torch.Generator().manual_seed(0)

    def of(*shape):
        return 0.3 * torch.randn(shape, generator=generator)

    def dense(name, inputs, outputs):
        return {f"{name}.weight": of(outputs, inputs), f"{name}.bias": of(outputs)}

    def norm(name):
        return {f"{name}.weight": 1 + of(hidden), f"{name}.bias": of(hidden)}

    state = {"bert.embeddings.position_ids": torch.arange(positions).unsqueeze(0)}
    for name, rows in (("word", vocab_size), ("position", positions), ("token_type", 2)):
        state[f"bert.embeddings.{name}_embeddings.weight"] = of(rows, hidden)
    state |= norm("bert.embeddings.LayerNorm")
    for i in range(layers):
        at = f"bert.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            state |= dense(f"{at}.attention.self.{name}", hidden, hidden)
        state |= dense(f"{at}.attention.output.dense", hidden, hidden) | norm(f"{at}.attention.output.LayerNorm")
        state |= dense(f"{at}.intermediate.dense", hidden, 4 * hidden)
        state |= dense(f"{at}.output.dense", 4 * hidden, hidden) | norm(f"{at}.output.LayerNorm")
    state |= dense("bert.pooler.dense", hidden, hidden)
    state |= dense("cls.predictions.transform.dense", hidden, hidden) | norm("cls.predictions.transform.LayerNorm")
    state |= dense("cls.seq_relationship", hidden, 2)
    bias = of(vocab_size)
    state |= {"cls.predictions.bias": bias, "cls.predictions.decoder.bias": bias}
    return state | {"cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"]}


def outputs(state, heads, tokens, segments, lengths):
    """(logits of every token (N, T, V), logits (N, 2)), without dropout."""
    hidden, at = state["bert.embeddings.LayerNorm.bias"].shape[0], "bert.embeddings"

    def dense(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, (hidden,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    x = state[f"{at}.word_embeddings.weight"][tokens] + state[f"{at}.token_type_embeddings.weight"][segments]
    x = norm(f"{at}.LayerNorm", x + state[f"{at}.position_embeddings.weight"][: tokens.shape[1]])
    padding = torch.arange(tokens.shape[1]) >= lengths.unsqueeze(1)
    for i in range(sum(name.endswith("intermediate.dense.bias") for name in state)):
        at = f"bert.encoder.layer.{i}"
        layer = torch.nn.TransformerEncoderLayer(
            hidden, heads, 4 * hidden, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True, dtype=x.dtype
        )
        own = {}
        for kind in ("weight", "bias"):
            parts = [state[f"{at}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            own[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
            for theirs, ours in (
                ("attention.output.dense", "self_attn.out_proj"),
                ("attention.output.LayerNorm", "norm1"),
                ("intermediate.dense", "linear1"),
                ("output.dense", "linear2"),
                ("output.LayerNorm", "norm2"),
            ):
                own[f"{ours}.{kind}"] = state[f"{at}.{theirs}.{kind}"]
        layer.load_state_dict(own)
        x = layer(x, src_key_padding_mask=padding)
    pooled = dense("bert.pooler.dense", x[:, 0]).tanh()
    at = "cls.predictions"
    words = norm(f"{at}.transform.LayerNorm", F.gelu(dense(f"{at}.transform.dense", x)))
    logits = F.linear(words, state[f"{at}.decoder.weight"], state[f"{at}.bias"])
    return logits, dense("cls.seq_relationship", pooled)
