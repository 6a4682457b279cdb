"""A training step in JAX, in a process of its own: see peers.py. One jitted function, images channels last."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from peers import serve

LAYOUT = ("NHWC", "HWIO", "NHWC")
MOMENTUM, EPS = 0.1, 1e-5  # of batch normalisation


def init(words, shape, random):
    """Parameters and running statistics of the layers, as lists of dicts, and the shape of what they give."""
    parameters, state = [], []
    for kind, *options in words:
        p, s = {}, {}
        if kind == "conv":
            channels, kernel, stride, padding, bias = options
            scale = (kernel * kernel * shape[-1]) ** -0.5
            p["w"] = random.uniform(-scale, scale, (kernel, kernel, shape[-1], channels))
            if bias:
                p["b"] = np.zeros(channels)
            size = [(length + 2 * padding - kernel) // stride + 1 for length in shape[1:3]]
            shape = (shape[0], *size, channels)
        elif kind == "linear":
            scale = shape[-1] ** -0.5
            p["w"], p["b"] = random.uniform(-scale, scale, (shape[-1], options[0])), np.zeros(options[0])
            shape = (shape[0], options[0])
        elif kind == "batch_norm":
            p["w"], p["b"] = np.ones(shape[-1]), np.zeros(shape[-1])
            s["mean"], s["var"] = np.zeros(shape[-1]), np.ones(shape[-1])
        elif kind in ("max_pool", "avg_pool"):
            kernel, stride, padding = options
            size = [(length + 2 * padding - kernel) // stride + 1 for length in shape[1:3]]
            shape = (shape[0], *size, shape[-1])
        elif kind == "flatten":
            shape = (shape[0], int(np.prod(shape[1:])))
        elif kind == "mean":
            shape = (shape[0], shape[-1])
        elif kind == "residual":
            (p["main"], s["main"], after), (p["side"], s["side"], _) = (init(part, shape, random) for part in options)
            shape = after
        parameters.append(p)
        state.append(s)
    return parameters, state, shape


def pool(x, kernel, stride, padding, start, reduce):
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, start, reduce, (1, kernel, kernel, 1), (1, stride, stride, 1), pads)


def apply(words, parameters, state, x, key):
    """The layers' result in training, and their new running statistics."""
    after = []
    for i, ((kind, *options), p, s) in enumerate(zip(words, parameters, state, strict=True)):
        if kind == "conv":
            _, _, stride, padding, _ = options
            pads = ((padding, padding), (padding, padding))
            x = lax.conv_general_dilated(x, p["w"], (stride, stride), pads, dimension_numbers=LAYOUT)
            x = x + p["b"] if "b" in p else x
        elif kind == "linear":
            x = x @ p["w"] + p["b"]
        elif kind == "batch_norm":
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            x = (x - mean) * (lax.rsqrt(var + EPS) * p["w"]) + p["b"]
            s = {name: (1 - MOMENTUM) * s[name] + MOMENTUM * new for name, new in (("mean", mean), ("var", var))}
        elif kind == "relu":
            x = jax.nn.relu(x)
        elif kind == "sigmoid":
            x = jax.nn.sigmoid(x)
        elif kind == "max_pool":
            x = pool(x, *options, -jnp.inf, lax.max)
        elif kind == "avg_pool":
            x = pool(x, *options, 0.0, lax.add) / options[0] ** 2
        elif kind == "flatten":
            x = x.reshape(x.shape[0], -1)
        elif kind == "mean":
            x = x.mean((1, 2))
        elif kind == "dropout":
            keep = 1 - options[0]
            x = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, i), keep, x.shape), x / keep, 0)
        elif kind == "residual":
            inner = jax.random.fold_in(key, i)
            main, of_main = apply(options[0], p["main"], s["main"], x, inner)
            side, of_side = apply(options[1], p["side"], s["side"], x, inner)
            x, s = jax.nn.relu(main + side), {"main": of_main, "side": of_side}
        after.append(s)
    return x, after


def make(task):
    words, rate, random = task["layers"], task["learning_rate"], np.random.default_rng(0)
    batch, channels, height, width = task["input"]
    parameters, state, _ = init(words, (batch, height, width, channels), random)
    parameters, state = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (parameters, state))
    x = jnp.asarray(random.standard_normal((batch, height, width, channels)), jnp.float32)
    target = jnp.asarray(random.integers(10, size=batch))

    def loss_of(parameters, state, key):
        logits, state = apply(words, parameters, state, x, key)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], 1).mean(), state

    @jax.jit
    def step(parameters, state, key):
        key, used = jax.random.split(key)
        (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(parameters, state, used)
        return jax.tree.map(lambda p, g: p - rate * g, parameters, grads), state, key, loss

    held = [parameters, state, jax.random.key(0)]

    def steps(count):
        begin = time.perf_counter()
        for _ in range(count):
            *held[:], loss = step(*held)
            loss.block_until_ready()  # as a program does that shows its loss
        if not jnp.isfinite(loss):
            raise FloatingPointError(f"peers: expected JAX's loss to be finite, got {loss}")
        return time.perf_counter() - begin

    return sum(p.size for p in jax.tree.leaves(parameters)), steps


if __name__ == "__main__":
    serve(make)
