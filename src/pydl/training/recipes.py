"""What ``pydl train MODEL`` does when no option is given: input size, optimizer, learning rate, epochs per model."""

from dataclasses import dataclass, field

from torch import nn

# the modules' own; Glorot's and He's uniform distributions
INITS = ("torch", "xavier", "kaiming")
METHODS = ("ppo", "dpo")  # of a policy


@dataclass(frozen=True)
class Recipe:
    """Defaults of one model; every one of them can be overridden on the command line.

    Attributes:
        data: the data set.
        options: of the model's own function, where the book's size would take minutes an epoch on a CPU.
        size: height and width of the input; None for a text.
        clip: the largest norm of all gradients together; None for any.
        patience: epochs without a lower test loss before the run stops; None for no such end.
        num_steps, tokens, partition: of a text, see :class:`pydl.training.config.Config`; None for images.
        label_smoothing: see :class:`pydl.training.config.Config`.
        weight_decay: the L2 penalty; None for torch's default of the optimizer.
        rule, method, rounds, kl: see :class:`pydl.training.config.Config`.
        init: ``xavier``, as d2l initialises most of its networks; ``kaiming``, for deep ones with ReLU alone; or
            ``torch`` for the modules' own initialisation.
    """

    data: str | None = "digits"
    size: int | None = 28
    options: dict = field(default_factory=dict)
    optimizer: str = "adam"
    lr: float = 1e-3
    epochs: int = 20
    batch_size: int = 64
    init: str = "torch"
    schedule: str = "constant"
    warmup: int = 0
    weight_decay: float | None = None
    clip: float | None = None
    patience: int | None = None
    num_steps: int | None = None
    tokens: str | None = None
    partition: str | None = None
    label_smoothing: float = 0.0
    rule: str | None = None
    method: str | None = None
    rounds: int | None = None
    kl: float | None = None


def _language(**changes):
    """The book's batches of 32 rows of 35 characters, its sequential partition and its clipping.

    The book descends by SGD at 1 for 500 epochs over a part of the text as long as nine steps; Adam comes to its best
    in a few epochs over all of it, after which these models learn the text by heart.
    """
    book = {"batch_size": 32, "num_steps": 35, "tokens": "letters", "partition": "sequential", "clip": 1.0}
    return Recipe("prose", size=None, **{**book, "schedule": "cosine", "patience": 2, **changes})


def _translation(**changes):
    """The book's clipping; smaller models than its own, since numbers have 30 words, for a few epochs."""
    book = {"batch_size": 128, "num_steps": 50, "clip": 1.0, "schedule": "cosine", "patience": 5}
    return Recipe("numbers", size=None, **{**book, **changes})


def _vectors(**changes):
    """d2l trains on Penn Treebank for 5 epochs; this text is a twentieth of that."""
    return Recipe("prose", size=None, **{"lr": 1e-2, "epochs": 10, "batch_size": 512, "schedule": "cosine", **changes})


def _bert(**changes):
    """d2l's rows of 64 tokens and its model of 128 numbers, 2 heads and 2 layers."""
    book = {"batch_size": 128, "num_steps": 64, "clip": 1.0, "schedule": "cosine", "optimizer": "adamw"}
    return Recipe("documentation", size=None, **{**book, **changes})


def _feedback(**changes):
    """Responses of 64 tokens; the text is that of the run that these begin with."""
    return Recipe(None, size=None, num_steps=64, clip=1.0, **{"schedule": "cosine", **changes})


# Learning rates were tried on the digits with two seeds each. d2l trains the sigmoid LeNet by SGD at 0.9; on a
# set this small that stays near chance for five epochs and ends near 0.90, where Adam ends near 0.985.
RECIPES = {
    "softmax_regression": Recipe(optimizer="sgd", lr=0.1),
    "mlp": Recipe(),
    "lenet": Recipe(lr=5e-3, epochs=30, init="xavier"),
    "lenet_bn": Recipe(lr=3e-3, init="xavier"),
    # The larger networks see the digits at less than the book's 224 or 96 pixels; --size and --option give those.
    "cifar_net": Recipe(size=32, epochs=15),
    # at a constant rate one seed of five never left ten per cent
    "alexnet": Recipe(size=96, lr=3e-4, epochs=12, init="xavier", schedule="cosine", warmup=23),
    "vgg11": Recipe(size=64, options={"ratio": 4}, lr=5e-4, epochs=8, batch_size=32, init="xavier", schedule="cosine"),
    # The last block ends in ReLU, and a class that is silent on every image never learns: many small steps, not too
    # large ones, and images whose last map has more than one pixel (96 wide: one; 0.72 and 0.82 with two seeds).
    "nin": Recipe(size=128, lr=5e-4, epochs=14, batch_size=16, init="xavier", schedule="cosine", warmup=90),
    "googlenet": Recipe(size=64, epochs=12, batch_size=32, init="xavier", schedule="cosine", warmup=45),
    "resnet18": Recipe(size=32, epochs=8, schedule="cosine"),
    "preact_resnet18": Recipe(size=32, epochs=8, schedule="cosine"),
    "resnet50": Recipe(size=32, epochs=10, schedule="cosine"),
    "resnext50": Recipe(size=32, epochs=10, schedule="cosine"),
    # In 100 epochs the discriminator learns the digits by heart: its test loss is 4 where the training's is 0.03.
    "dcgan": Recipe(size=32, lr=1e-3, epochs=40),
    "vgg16": Recipe(
        size=32, options={"ratio": 4}, lr=5e-4, epochs=10, batch_size=32, init="kaiming", schedule="cosine", warmup=45
    ),
    "style": Recipe("photographs", size=200, lr=0.05, epochs=6, batch_size=1, schedule="cosine"),
    "densenet": Recipe(size=64, epochs=8, schedule="cosine"),
    "wide_resnet": Recipe(size=16, epochs=6, schedule="cosine"),
    "linear_regression": Recipe("linear", optimizer="sgd", lr=0.03, epochs=3, batch_size=10),
    "polynomial_regression": Recipe("polynomial", optimizer="sgd", lr=0.01, epochs=400, batch_size=10),
    "weight_decay": Recipe("weight-decay", optimizer="sgd", lr=0.003, epochs=100, batch_size=5, weight_decay=3.0),
    "bert": _bert(lr=1e-3, epochs=14, batch_size=32, warmup=200),
    "bert_classifier": _bert(lr=5e-4, epochs=20, batch_size=20, warmup=10),
    "elmo": Recipe("prose", size=None, lr=5e-3, epochs=24, batch_size=32, num_steps=32, clip=1.0, schedule="cosine"),
    "cbow": _vectors(),
    "skipgram": _vectors(),
    "ngram": _language(lr=0.1, epochs=5),
    "nnlm": _language(lr=2e-3, epochs=12),
    "rnn_lm": _language(lr=2e-3, epochs=15),
    "gru_lm": _language(lr=3e-3, epochs=8),
    "lstm_lm": _language(lr=3e-3, epochs=8),
    "seq2seq": _translation(lr=5e-3, epochs=6, options={"layers": 1, "embedding": 64, "dropout": 0.0}),
    "seq2seq_attention": _translation(
        lr=5e-3, epochs=5, options={"layers": 1, "embedding": 64, "hidden": 128, "dropout": 0.0}
    ),
    "transformer": _translation(
        lr=2e-3,
        epochs=4,
        warmup=100,
        label_smoothing=0.1,
        options={"blocks": 2, "width": 128, "hidden": 256, "heads": 4},
    ),
    # It has not learnt the text by heart when four minutes are over: dropout would only hold it up.
    "gpt": _language(
        options={"dropout": 0.0},
        lr=4e-3,
        epochs=9,
        batch_size=8,
        num_steps=128,
        partition="random",
        warmup=100,
    ),
    # The book's sizes are for an object that fills much of the picture; these have an overlap of a half and more with
    # digits of 20 to 80 pixels of 256.
    "ssd": Recipe(
        "scenes",
        size=256,
        options={"sizes": (0.09, 0.125, 0.175, 0.24, 0.32, 0.45, 0.54, 0.619, 0.71, 0.79)},
        lr=3e-3,
        epochs=5,
        batch_size=16,
        schedule="cosine",
        warmup=100,
    ),
    # 8,000 scenes by 4 come as far as 10,000 by 8: a mean IoU of 0.82.
    "fcn": Recipe(
        "scenes", size=256, options={"stride": 4}, lr=1e-3, epochs=4, batch_size=4, schedule="cosine", warmup=50
    ),
    "reward": _feedback(rule="long", lr=1e-3, epochs=2, batch_size=32, warmup=20),
    "ppo": _feedback(method="ppo", lr=3e-4, epochs=20, batch_size=128, rounds=1, kl=7.0),
}


# a policy by its second method: the pairs of the reward model's run, three times over
DPO = _feedback(method="dpo", lr=1e-4, epochs=3, batch_size=32)


def recipe(model, method=None):
    """The recipe of ``model``, by ``method`` where it has two, or the general one where it has none of its own."""
    return DPO if model == "ppo" and method == "dpo" else RECIPES.get(model, Recipe())


def initialise(model, init):
    """Initialises linear and convolution weights in place, by Glorot's or He's uniform distribution."""
    if init == "torch":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if init == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
