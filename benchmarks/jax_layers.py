"""Layers of the transformers in JAX, which jax_bert.py and peer_jax.py share."""

import jax
import jax.numpy as jnp
from jax import lax


def norm(x, q, eps):
    """Layer norm over the last dimension, with ``q["w"]`` and ``q["b"]``."""
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + eps) * q["w"] + q["b"]


def affine(x, q):
    """A linear layer: ``x @ q["w"] + q["b"]``."""
    return x @ q["w"] + q["b"]


def dropout(x, rate, key, number):
    """Inverted dropout, by the random numbers of ``key`` folded with the call's ``number``."""
    if rate == 0:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)
