"""The subcommands of ``pydl`` and their options, by Typer; :mod:`pydl.cli` runs them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pydl.errors import OptionError

app = typer.Typer(
    name="pydl",
    help="Hand-written kernels for PyTorch: train the book's models with them, and see how they stand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked):
    if asked:
        from pydl import __version__

        print(f"pydl {__version__}")
        raise typer.Exit


@app.callback()
def _pydl(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show pydl's version and exit.")
    ] = False,
):
    pass


# options of `pydl train` that decide nothing about the numbers of a run
_NOT_OF_CONFIG = ("out", "resume", "option", "folds", "download", "report")


@app.command()
def train(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="Model to train; `pydl info` lists them.", metavar="MODEL")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set; `pydl info` lists them. Most models: digits.")] = None,
    root: Annotated[
        str,
        typer.Option(help="Folder with the files of data sets that are not bundled; the file of `text` or `pairs`."),
    ] = "data",
    download: Annotated[bool, typer.Option("--download", help="Fetch the files first, by torchvision.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many steps, inside an epoch too.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per step.")] = None,
    accumulate: Annotated[int, typer.Option(help="Parts that a step's batch is computed in, for memory.")] = 1,
    weights: Annotated[str | None, typer.Option(help="File or run of weights to begin with.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, momentum, adam or adamw.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="L2 penalty; for adamw, decoupled.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Of the learning rate: constant, step or cosine.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps over which the learning rate rises.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of all gradients together.")] = None,
    l1: Annotated[float, typer.Option(help="L1 penalty: its factor of all absolute weights.")] = 0.0,
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision: bfloat16 on a CPU, float16 on a GPU.")] = False,
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without a lower test loss.")] = None,
    init: Annotated[str | None, typer.Option(help="First weights: torch, xavier or kaiming.")] = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validate: train once per fold of the training set.")] = None,
    augment: Annotated[
        str | None, typer.Option(help="Vary training images: crop, flip, jitter, or several by commas.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that make batches ready; for large image folders.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, order of the data and dropout.")] = 0,
    size: Annotated[int | None, typer.Option(help="Height and width of the model's input.")] = None,
    num_steps: Annotated[int | None, typer.Option(help="Tokens of a row, a response; or longest sentence.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Of language models: letters, char, word, bpe, byte-bpe.")] = None,
    partition: Annotated[str | None, typer.Option(help="Of language models: sequential or random.")] = None,
    language: Annotated[str | None, typer.Option(help="Of the data set numbers: fr, de or es.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of each target that all classes get.")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Of reward and ppo: the run of gpt to begin with.")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="Of ppo: the run of reward that judges.")] = None,
    pairs: Annotated[str | None, typer.Option(help="Of reward: a file of pairs, ranked by you.")] = None,
    rule: Annotated[str | None, typer.Option(help="Of reward: what ranks samples: known, long, sentiment.")] = None,
    method: Annotated[str | None, typer.Option(help="Of ppo: ppo, or dpo on the pairs of --reward.")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Of ppo: before each after the first, --reward learns anew.")
    ] = None,
    kl: Annotated[float | None, typer.Option(help="Of ppo: nats a response to stay near; 0: no penalty.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="The model's own NAME=VALUE: ratio=1, hidden=8,8.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    backend: Annotated[str | None, typer.Option(help="Kernels: torch, cpu, cuda or triton.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default torch's.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write an event file for TensorBoard.")] = False,
    monitor: Annotated[bool, typer.Option("--monitor", help="Draw each layer's activations and gradients.")] = False,
    report: Annotated[bool, typer.Option("--report", help="List at the end which kernels served each layer.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/MODEL, runs/MODEL-2, …")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder or checkpoint to continue exactly.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Train with plain torch too, in turns.")] = False,
    replace_head: Annotated[int | None, typer.Option(help="Of --weights all but the last layer; its outputs.")] = None,
    add_layer: Annotated[bool, typer.Option("--add-layer", help="A new layer after the last of --weights.")] = False,
    freeze: Annotated[list[str] | None, typer.Option(help="Names that stay: layer1.*; body: but the last.")] = None,
    head_lr_factor: Annotated[float, typer.Option(help="The last layer's learning rate: so many times --lr.")] = 1.0,
):
    """Train MODEL and keep metrics.jsonl, curves.png and checkpoint.pt.

    What is not given comes from the model's recipe: `pydl train lenet` needs no option and no download. Several
    processes: `torchrun --nproc-per-node=2 -m pydl train lenet_bn`; the batch size is that of all together.
    """
    from pydl import train as training  # torch's import takes a second, which --help need not wait for
    from pydl.data import download as fetch
    from pydl.training.config import RESUME_MAY_CHANGE, Config

    options = {k: v for k, v in context.params.items() if k not in _NOT_OF_CONFIG}
    options["options"] = _model_options(option)
    options["augment"] = [kind.strip() for kind in augment.split(",")] if augment is not None else None
    if resume is None:
        if model is None:
            raise OptionError("train: expected the name of a model, got none; `pydl info` lists them")
        if download:
            fetch(data or "digits", root)
        if folds is not None:
            training.cross_validate(Config(**options), folds, out=out)
            return
        training.train(Config(**options), out=out, report=report)
        return
    if download:
        raise OptionError("--download: expected a new run, got --resume, whose data must be there")
    if folds is not None:
        raise OptionError("--folds: expected a new run, got --resume; each fold's run can be resumed by no other data")
    source = {**{name: name for name in options}, "options": "option"}
    given = {name for name in options if context.get_parameter_source(source[name]).name == "COMMANDLINE"}
    config, content = training.resumed(resume, **{k: options[k] for k in given & set(RESUME_MAY_CHANGE)})
    for name in sorted(given - set(RESUME_MAY_CHANGE)):
        if options[name] != getattr(config, name):
            named = "MODEL" if name == "model" else f"--{source[name].strip('_').replace('_', '-')}"
            raise OptionError(
                f"{named}: expected {getattr(config, name)!r} as in the checkpoint that is resumed, "
                f"got {options[name]!r}"
            )
    training.train(config, out=out, resume=content, report=report)


def _model_options(pairs):
    """``["ratio=4", "dropout=0.1,0.3"]`` as ``{"ratio": 4, "dropout": (0.1, 0.3)}``; what is no number stays text."""
    options = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise OptionError(f"--option: expected NAME=VALUE, got {pair!r}")
        values = tuple(_value(word) for word in text.split(",") if word)
        options[name.replace("-", "_")] = values if "," in text else _value(text)
    return options


def _value(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder or checkpoint of `pydl train`.", metavar="RUN")],
    images: Annotated[list[str], typer.Argument(help="Image files; sentences, of such a run.", metavar="IMAGE")],
    top: Annotated[int | None, typer.Option(help="Classes, or objects, of each; 3 classes.", min=1)] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Swap dark and light: ink on paper for digits.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures with labels, boxes or overlays.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    backend: Annotated[str | None, typer.Option(help="Kernels: torch, cpu, cuda or triton.")] = None,
):
    """Print the classes that a trained model gives to images or sentences, or the objects that it finds in images."""
    from rich.console import Console

    from pydl.predict import Predictor, kind_of, save_pictures, table

    kind = kind_of(checkpoint)
    if kind == "topics":
        _predict_sentences(checkpoint, images, top or 3, {"--invert": invert, "--out": out}, device, backend)
        return
    images = [Path(image) for image in images]
    if kind in ("detector", "segmenter"):
        _predict_objects(checkpoint, kind, images, top, invert, out, device, backend)
        return
    predictor = Predictor(checkpoint, device, backend)
    predictions = predictor(images, invert=invert, top=top or 3)
    console = Console()
    console.print(table(predictions))
    if warning := predictor.warning(predictions, invert):
        print(f"pydl: {warning}", file=sys.stderr)
    if out is not None:
        paths = save_pictures(predictions, out)
        console.print(f"{out}/ holds {len(paths)} pictures with their labels", highlight=False)


def _predict_objects(checkpoint, kind, images, top, invert, out, device, backend):
    from rich.console import Console

    from pydl.detect import ObjectPredictor, save_pictures, table

    found = ObjectPredictor(checkpoint, kind, device, backend)(images, invert=invert, top=top)
    console = Console()
    console.print(table(found))
    if out is not None:
        paths, what = save_pictures(found, out), "boxes" if kind == "detector" else "overlays"
        console.print(f"{out}/ holds {len(paths)} pictures with their {what}", highlight=False)


def _predict_sentences(checkpoint, sentences, top, of_images, device, backend):
    from pydl.classify import SentencePredictor

    for name, value in of_images.items():
        if value:
            raise OptionError(f"{name}: expected a run of a model of images to take it, got one of sentences")
    predictor = SentencePredictor(checkpoint, device, backend)
    for sentence, ranking in zip(sentences, predictor(sentences, top), strict=True):
        print("  ".join([sentence, *(f"{name} {probability:.4f}" for name, probability in ranking)]))


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder or checkpoint of a language model.", metavar="RUN")],
    prefix: Annotated[str, typer.Argument(help="Text to go on from.", metavar="PREFIX")],
    length: Annotated[int, typer.Option(help="Tokens to write.")] = 200,
    temperature: Annotated[float, typer.Option(help="Below 1 likely tokens become likelier; 0: the likeliest.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the likeliest tokens alone.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest that have this probability.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    backend: Annotated[str | None, typer.Option(help="Kernels: torch, cpu, cuda or triton.")] = None,
):
    """Print PREFIX and what a trained language model writes after it, and on stderr how fast it wrote."""
    from pydl.generate import Writer

    writer = Writer(checkpoint, device, backend)
    print(writer(prefix, length, temperature, top_k, seed, top_p))
    print(f"{length} tokens, {writer.rate:,.0f} tokens/s", file=sys.stderr)


@app.command()
def translate(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder or checkpoint of a translator.", metavar="RUN")],
    sentence: Annotated[str, typer.Argument(help="Sentence to translate.", metavar="SENTENCE")],
    beam: Annotated[int, typer.Option(help="Sentences kept by beam search; 1: the likeliest word each time.")] = 1,
    attention: Annotated[Path | None, typer.Option(help="Picture of where the model looked.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    backend: Annotated[str | None, typer.Option(help="Kernels: torch, cpu, cuda or triton.")] = None,
):
    """Print a trained translator's translation of SENTENCE."""
    from pydl.translate import Translator

    translator = Translator(checkpoint, device, backend)
    translation = translator(sentence, beam)
    print(translation)
    if attention is not None:
        translator.draw(attention, sentence, translation)


@app.command()
def neighbours(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder or checkpoint of word vectors.", metavar="RUN")],
    word: Annotated[str, typer.Argument(help="A word of the text.", metavar="WORD")],
    top: Annotated[int, typer.Option(help="Words to show.")] = 10,
):
    """Print the words whose vectors a run of word vectors puts nearest to WORD's, with their cosines."""
    from pydl.neighbours import Vectors

    for near, cosine in Vectors(checkpoint)(word, top):
        print(f"{near}  {cosine:.3f}")


@app.command()
def sample(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder or checkpoint of a generator.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="File of the picture.")] = Path("samples.png"),
    count: Annotated[int, typer.Option(help="Images to make.")] = 100,
    columns: Annotated[int, typer.Option(help="Images in a row.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    judge: Annotated[Path | None, typer.Option(help="Run of a classifier: print the share of each class.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    backend: Annotated[str | None, typer.Option(help="Kernels: torch, cpu, cuda or triton.")] = None,
):
    """Write a picture of images that a trained generator (`dcgan`) makes of noise."""
    from pydl import sample as samples

    images = samples.Sampler(checkpoint, device, backend)(count, seed)
    samples.save(images, out, columns)
    print(f"{out} holds {count} images")
    if judge is not None:
        for name, share in samples.judged(images, judge).items():
            print(f"{name}  {share:.3f}")


@app.command()
def finetune(
    model: Annotated[str, typer.Argument(help="Classifier of images.", metavar="MODEL")] = "resnet18",
    seeds: Annotated[int, typer.Option(help="Trainings of each row, with other examples.")] = 5,
    each: Annotated[int, typer.Option(help="Examples of each class.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs; default runs/MODEL-finetune, …")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default torch's.")] = None,
    backend: Annotated[str | None, typer.Option(help="Kernels: torch, cpu, cuda or triton.")] = None,
):
    """Show what pretraining brings: the digits 5 to 9 from few examples, from scratch, on a frozen body, fine-tuned."""
    from pydl import finetune as tuning

    tuning.finetune(model, seeds, each, out, threads=threads, backend=backend)


@app.command()
def judge(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder or checkpoint of a reward model.", metavar="RUN")],
    prompt: Annotated[str, typer.Argument(help="What the texts go on from.", metavar="PROMPT")],
    texts: Annotated[list[str], typer.Argument(help="Texts to judge.", metavar="TEXT")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    backend: Annotated[str | None, typer.Option(help="Kernels: torch, cpu, cuda or triton.")] = None,
):
    """Print the scores that a reward model gives to what may be written after PROMPT, the best first."""
    from pydl.judge import Judge

    scores = Judge(checkpoint, device, backend)(prompt, texts)
    for score, text in sorted(zip(scores, texts, strict=True), reverse=True):
        print(f"{score:+.2f}  {text}")


@app.command()
def info():
    """Show versions, the CPU's instruction sets, threads, backends and why, models and data sets."""
    from pydl import about

    about.show()


@app.command()
def bench(
    ops: Annotated[list[str] | None, typer.Option("--ops", help="An op to time; repeat it for more. All ops.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few cases of each op, in a few minutes.")] = False,
    json: Annotated[Path | None, typer.Option(help="File that keeps the figures.")] = None,
    against: Annotated[Path | None, typer.Option(help="A file of --json to compare with, case by case.")] = None,
):
    """Time the ops beside torch eager and torch.compile on this machine."""
    from pydl import bench as suite

    sys.exit(suite.command(ops, quick, json, against))
