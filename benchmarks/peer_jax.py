"""A training step in JAX, in a process of its own: see peers.py. One jitted function, images channels last."""

import time

import bert_arrays
import jax
import jax.numpy as jnp
import jax_bert
import jax_layers
import numpy as np
from jax import lax
from jax_layers import affine
from peers import serve

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
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
            shape = (*shape[:-1], options[0])
        elif kind == "one_hot":
            shape = (*shape, options[0])
        elif kind in GATES:
            units, scale = options[0], options[0] ** -0.5
            for name, size in (("w", (shape[-1], GATES[kind] * units)), ("u", (units, GATES[kind] * units))):
                p[name] = random.uniform(-scale, scale, size)
            p["b"], p["c"] = np.zeros(GATES[kind] * units), np.zeros(GATES[kind] * units)
            shape = (*shape[:-1], units)
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
        elif kind == "gpt":
            vocabulary, hidden, positions, _, blocks, _ = options
            p = gpt_init(random, vocabulary, hidden, positions, blocks)
            shape = (*shape, vocabulary)
        elif kind == "residual":
            (p["main"], s["main"], after), (p["side"], s["side"], _) = (init(part, shape, random) for part in options)
            shape = after
        parameters.append(p)
        state.append(s)
    return parameters, state, shape


def pool(x, kernel, stride, padding, start, reduce):
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, start, reduce, (1, kernel, kernel, 1), (1, stride, stride, 1), pads)


def recurrent(kind, p, x):
    """The states of all steps of one layer, as torch defines its gates; the input's product before the loop."""

    def step(state, a):
        h, c = state
        b = h @ p["u"] + p["c"]
        if kind == "gru":
            (a_r, a_z, a_n), (b_r, b_z, b_n) = jnp.split(a, 3, -1), jnp.split(b, 3, -1)
            r, z = jax.nn.sigmoid(a_r + b_r), jax.nn.sigmoid(a_z + b_z)
            n = jnp.tanh(a_n + r * b_n)
            h = n + z * (h - n)
        elif kind == "lstm":
            i, f, g, o = jnp.split(a + b, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        else:
            h = jnp.tanh(a + b)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], p["u"].shape[0]), x.dtype)
    return lax.scan(step, (zeros, zeros), x @ p["w"] + p["b"])[1]


def gpt_init(random, vocabulary, hidden, positions, blocks):
    """Parameters of GPT, its embedding tied to its last layer."""

    def affine(inputs, outputs):
        scale = inputs**-0.5
        return {"w": random.uniform(-scale, scale, (inputs, outputs)), "b": np.zeros(outputs)}

    def norm():
        return {"w": np.ones(hidden), "b": np.zeros(hidden)}

    def block():
        layers = {"qkv": (hidden, 3 * hidden), "output": (hidden, hidden)}
        layers |= {"up": (hidden, 4 * hidden), "down": (4 * hidden, hidden)}
        return {"norm1": norm(), "norm2": norm()} | {name: affine(*sizes) for name, sizes in layers.items()}

    sizes = {"tokens": (vocabulary, hidden), "positions": (positions, hidden)}
    embeddings = {name: 0.02 * random.standard_normal(size) for name, size in sizes.items()}
    return embeddings | {"blocks": [block() for _ in range(blocks)], "norm": norm()}


def gpt(p, x, heads, rate, key):
    """Logits (N, T, V) of tokens (N, T), as benchmarks/gpt.py has it in torch."""

    def norm(x, q):
        return jax_layers.norm(x, q, EPS)

    def dropped(x, number):
        return jax_layers.dropout(x, rate, key, number)

    steps = x.shape[1]
    x, seen = dropped(p["tokens"][x] + p["positions"][:steps], 0), jnp.tril(jnp.ones((steps, steps), bool))
    for i, block in enumerate(p["blocks"]):
        q, k, v = jnp.split(affine(norm(x, block["norm1"]), block["qkv"]), 3, -1)
        q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(0, 2, 1, 3) for part in (q, k, v))
        scores = jnp.where(seen, q @ k.swapaxes(2, 3) * q.shape[-1] ** -0.5, -jnp.inf)
        out = dropped(jax.nn.softmax(scores, -1), 3 * i + 1) @ v
        x = x + dropped(affine(out.transpose(0, 2, 1, 3).reshape(x.shape), block["output"]), 3 * i + 2)
        wide = jax.nn.gelu(affine(norm(x, block["norm2"]), block["up"]), approximate=True)
        x = x + dropped(affine(wide, block["down"]), 3 * i + 3)
    return norm(x, p["norm"]) @ p["tokens"].T


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
        elif kind == "one_hot":
            x = jax.nn.one_hot(x, options[0])
        elif kind in GATES:
            x = recurrent(kind, p, x)
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
        elif kind == "gpt":
            x = gpt(p, x, options[3], options[5], jax.random.fold_in(key, i))
        elif kind == "residual":
            inner = jax.random.fold_in(key, i)
            main, of_main = apply(options[0], p["main"], s["main"], x, inner)
            side, of_side = apply(options[1], p["side"], s["side"], x, inner)
            x, s = jax.nn.relu(main + side), {"main": of_main, "side": of_side}
        after.append(s)
    return x, after


def make(task):
    words, rate, random = task["layers"], task["learning_rate"], np.random.default_rng(0)
    if "masked" in task:
        _, vocabulary, hidden, positions, layers, heads, dropout = words[0]
        x, target = jax.tree.map(
            jnp.asarray, bert_arrays.batch(random, task["rows"], vocabulary, positions, task["masked"])
        )
        parameters, state = bert_arrays.init(random, vocabulary, hidden, positions, layers), []
    elif "rows" in task:
        _, vocabulary, _, positions, *_ = words[0]
        shape = task["rows"], positions
        x, target = (jnp.asarray(random.integers(vocabulary, size=shape)) for _ in range(2))
    elif "tokens" in task:
        shape = task["tokens"]
        x, target = (jnp.asarray(random.integers(task["characters"], size=shape)) for _ in range(2))
    else:
        batch, channels, height, width = task["input"]
        shape = batch, height, width, channels
        x = jnp.asarray(random.standard_normal(shape), jnp.float32)
        target = jnp.asarray(random.integers(10, size=batch))
    if "masked" not in task:
        parameters, state, _ = init(words, shape, random)
    parameters, state = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (parameters, state))

    def loss_of(parameters, state, key):
        if "masked" in task:
            return jax_bert.loss(parameters, x, target, heads, dropout, key), state
        logits, state = apply(words, parameters, state, x, key)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1).mean(), state

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
