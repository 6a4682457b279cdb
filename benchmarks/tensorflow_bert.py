"""BERT's pretraining step in TensorFlow, as benchmarks/bert.py has it in torch; parameters as of bert_arrays.py."""

import tensorflow as tf

EPS = 1e-12


def variables(parameters):
    """The arrays of nested dictionaries and lists as variables."""
    if isinstance(parameters, dict):
        return {name: variables(value) for name, value in parameters.items()}
    if isinstance(parameters, list):
        return [variables(value) for value in parameters]
    return tf.Variable(tf.constant(parameters, tf.float32))


def loss(p, x, target, heads, rate):
    """Mean loss of the masked tokens plus that of the pairs; ``x`` and ``target`` as of ``bert.inputs``."""
    tokens, segments, places = x
    rows, length = tokens.shape
    hidden = p["words"].shape[1]

    def norm(x, q):
        mean, var = tf.nn.moments(x, -1, keepdims=True)
        return tf.nn.batch_normalization(x, mean, var, q["b"], q["w"], EPS)

    def affine(x, q):
        flat = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), q["w"]) + q["b"]
        return tf.reshape(flat, (*x.shape[:-1], q["w"].shape[1]))

    def dropped(x):
        return tf.nn.dropout(x, rate) if rate else x

    def entropy(logits, target):
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits))

    x = tf.gather(p["words"], tokens) + tf.gather(p["segments"], segments) + p["places"][:length]
    x = dropped(norm(x, p["norm"]))
    for layer in p["layers"]:
        q, k, v = (
            tf.transpose(tf.reshape(affine(x, layer[name]), (rows, length, heads, hidden // heads)), (0, 2, 1, 3))
            for name in ("query", "key", "value")
        )
        weights = dropped(tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * (hidden // heads) ** -0.5))
        out = tf.reshape(tf.transpose(tf.matmul(weights, v), (0, 2, 1, 3)), x.shape)
        x = norm(x + dropped(affine(out, layer["output"])), layer["norm1"])
        x = norm(x + dropped(affine(tf.nn.gelu(affine(x, layer["up"])), layer["down"])), layer["norm2"])
    at = tf.gather(x, places, batch_dims=1)
    seen = norm(tf.nn.gelu(affine(at, p["transform"])), p["transform_norm"])
    flat = tf.matmul(tf.reshape(seen, (-1, hidden)), p["words"], transpose_b=True) + p["bias"]
    follows = affine(tf.tanh(affine(x[:, 0], p["pooler"])), p["follows"])
    return entropy(flat, tf.reshape(target[:, :-1], (-1,))) + entropy(follows, target[:, -1])
