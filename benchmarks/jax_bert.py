"""BERT's pretraining step in JAX, as benchmarks/bert.py has it in torch."""

import jax
import jax.numpy as jnp
import jax_layers
from jax_layers import affine

EPS = 1e-12


def loss(p, x, target, heads, rate, key):
    """Mean loss of the masked tokens plus that of the pairs; ``x`` and ``target`` as of ``bert.inputs``."""
    tokens, segments, places = x

    def norm(x, q):
        return jax_layers.norm(x, q, EPS)

    def dropped(x, number):
        return jax_layers.dropout(x, rate, key, number)

    def entropy(logits, target):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1).mean()

    x = p["words"][tokens] + p["segments"][segments] + p["places"][: tokens.shape[1]]
    x = dropped(norm(x, p["norm"]), 0)
    for i, layer in enumerate(p["layers"]):
        q, k, v = (
            affine(x, layer[name]).reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        weights = dropped(jax.nn.softmax(q @ k.swapaxes(2, 3) * q.shape[-1] ** -0.5, -1), 3 * i + 1)
        out = (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(x + dropped(affine(out, layer["output"]), 3 * i + 2), layer["norm1"])
        wide = jax.nn.gelu(affine(x, layer["up"]), approximate=False)
        x = norm(x + dropped(affine(wide, layer["down"]), 3 * i + 3), layer["norm2"])
    at = jnp.take_along_axis(x, places[..., None], 1)
    seen = norm(jax.nn.gelu(affine(at, p["transform"]), approximate=False), p["transform_norm"])
    follows = affine(jnp.tanh(affine(x[:, 0], p["pooler"])), p["follows"])
    return entropy(seen @ p["words"].T + p["bias"], target[:, :-1]) + entropy(follows, target[:, -1])
