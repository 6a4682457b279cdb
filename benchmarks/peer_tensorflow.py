"""A training step in TensorFlow, in a process of its own: see peers.py. Keras layers under one tf.function."""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import bert_arrays
import keras
import numpy as np
import tensorflow as tf
import tensorflow_bert
from keras import layers
from peers import serve

RECURRENT = {"rnn": layers.SimpleRNN, "gru": layers.GRU, "lstm": layers.LSTM}


def build(words, x):
    """The layers applied to Keras' symbolic ``x``: images channels last, or numbers of characters, batch first."""
    for kind, *options in words:
        if kind == "conv":
            channels, kernel, stride, padding, bias = options
            same = stride == 1 and 2 * padding + 1 == kernel
            if padding and not same:
                x = layers.ZeroPadding2D(padding)(x)
            x = layers.Conv2D(channels, kernel, stride, "same" if same else "valid", use_bias=bias)(x)
        elif kind == "linear":
            x = layers.Dense(options[0])(x)
        elif kind == "one_hot":
            x = keras.ops.one_hot(x, options[0])
        elif kind in RECURRENT:
            x = RECURRENT[kind](options[0], return_sequences=True)(x)
        elif kind == "batch_norm":
            x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
        elif kind in ("relu", "sigmoid"):
            x = layers.Activation(kind)(x)
        elif kind in ("max_pool", "avg_pool"):
            kernel, stride, padding = options
            if padding:  # behind ReLU, so that a border of zeros is no maximum
                x = layers.ZeroPadding2D(padding)(x)
            x = (layers.MaxPooling2D if kind == "max_pool" else layers.AveragePooling2D)(kernel, stride)(x)
        elif kind == "flatten":
            x = layers.Flatten()(x)
        elif kind == "mean":
            x = layers.GlobalAveragePooling2D()(x)
        elif kind == "dropout":
            x = layers.Dropout(options[0])(x)
        elif kind == "residual":
            x = layers.Activation("relu")(layers.Add()([build(part, x) for part in options]))
    return x


def make(task):
    random = np.random.default_rng(0)
    if "masked" in task:
        return make_bert(task, random)
    if "tokens" in task:
        length, batch = task["tokens"]
        symbols = keras.Input((length,), dtype="int32")
        x, target = (tf.constant(random.integers(task["characters"], size=(batch, length))) for _ in range(2))
    else:
        batch, channels, height, width = task["input"]
        symbols = keras.Input((height, width, channels))
        x = tf.constant(random.standard_normal((batch, height, width, channels)), tf.float32)
        target = tf.constant(random.integers(10, size=batch))
    net = keras.Model(symbols, build(task["layers"], symbols))

    def loss_of():
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(target, net(x, training=True)))

    count = sum(int(np.prod(v.shape)) for v in net.trainable_variables)
    for layer in net.layers:  # which have one bias where torch has two, of which the sum alone counts
        if isinstance(layer, layers.SimpleRNN | layers.LSTM):
            count += int(np.prod(layer.cell.bias.shape))
    return count, trained(loss_of, net.trainable_variables, task["learning_rate"])


def make_bert(task, random):
    _, vocabulary, hidden, positions, blocks, heads, dropout = task["layers"][0]
    arrays = bert_arrays.batch(random, task["rows"], vocabulary, positions, task["masked"])
    x, target = tf.nest.map_structure(tf.constant, arrays)
    parameters = tensorflow_bert.variables(bert_arrays.init(random, vocabulary, hidden, positions, blocks))
    flat = tf.nest.flatten(parameters)

    def loss_of():
        return tensorflow_bert.loss(parameters, x, target, heads, dropout)

    return sum(int(np.prod(v.shape)) for v in flat), trained(loss_of, flat, task["learning_rate"])


def trained(loss_of, variables, learning_rate):
    """A function that takes n steps of ``loss_of`` by SGD and returns their seconds."""

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = loss_of()
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(learning_rate * tf.convert_to_tensor(gradient))  # of a gather it is sparse
        return loss

    def steps(count):
        begin = time.perf_counter()
        for _ in range(count):
            loss = step().numpy()
        if not np.isfinite(loss):
            raise FloatingPointError(f"peers: expected TensorFlow's loss to be finite, got {loss}")
        return time.perf_counter() - begin

    return steps


if __name__ == "__main__":
    serve(make)
