"""Names of the book that are not served, with what to use."""

from pydl.errors import did_you_mean

_FILES = "pydl.data or torch on files of your own: nothing is downloaded here"
_PROSE = "load_data_time_machine, whose prose needs no download"
_LATER = {
    "LinearRegressionData": "SyntheticRegressionData",
    "LSTM": "torch.nn.LSTM in an RNNModel, or as the rnn of a class of your own for an RNNLM",
    "LeNet": "pydl.models.lenet, or its layers in a torch.nn.Sequential",
    "AlexNet": "pydl.models.alexnet",
    "VGG": "pydl.models.vgg11",
    "NiN": "pydl.models.nin",
    "GoogleNet": "pydl.models.googlenet",
    "ResNet": "pydl.models.resnet18",
    "ResNet18": "pydl.models.resnet18",
    "ResNeXtBlock": "pydl.models.resnext50",
    "get_fashion_mnist": "load_data_fashion_mnist",
}
_TENSORS = {
    "ones": "torch.ones",
    "zeros": "torch.zeros",
    "tensor": "torch.tensor",
    "arange": "torch.arange",
    "meshgrid": "torch.meshgrid",
    "linspace": "torch.linspace",
    "normal": "torch.normal",
    "rand": "torch.rand",
    "randn": "torch.randn",
    "matmul": "torch.matmul",
    "batch_matmul": "torch.bmm",
    "concat": "torch.cat",
    "stack": "torch.stack",
    "eye": "torch.eye",
    "numpy": "x.detach().numpy()",
    "size": "x.numel()",
    "reshape": "x.reshape(...)",
    "to": "x.to(...)",
    "reduce_sum": "x.sum(...)",
    "reduce_mean": "x.mean(...)",
    "argmax": "x.argmax(...)",
    "astype": "x.type(...)",
    "transpose": "x.t()",
    "expand_dims": "x.unsqueeze(...)",
    "swapaxes": "x.swapaxes(...)",
    "repeat": "x.repeat(...)",
    "nn_Module": "torch.nn.Module",
}
INSTEAD = {
    "download": _FILES,
    "download_extract": _FILES,
    "download_all": _FILES,
    "extract": "tarfile or zipfile of Python",
    "DATA_HUB": _FILES,
    "DATA_URL": _FILES,
    "load_data_voc": _FILES,
    "read_voc_images": _FILES,
    "VOCSegDataset": _FILES,
    "load_data_bananas": _FILES,
    "read_data_bananas": _FILES,
    "load_data_wiki": _PROSE,
    "load_data_ptb": _PROSE,
    "load_data_imdb": _FILES,
    "load_data_snli": _FILES,
    "TokenEmbedding": "torch.nn.Embedding.from_pretrained with vectors of your own: nothing is downloaded here",
    "mkdir_if_not_exist": "os.makedirs(path, exist_ok=True)",
    "Benchmark": "Timer",
    "try_gpus": "try_all_gpus",
    "show_trace_2d": "plot",
    "train_bert": "a loop of your own over BERTModel",
    "load_pretrained_model": "BERTModel, trained by yourself: nothing is downloaded here",
    "TransformerDecoder": "AttentionDecoder with blocks of MultiHeadAttention, AddNorm and PositionWiseFFN",
    "TransformerDecoderBlock": "MultiHeadAttention, AddNorm and PositionWiseFFN",
    "show_list_len_pair_hist": "plt.hist",
    "train_2d": "a loop of your own, with plot",
    "get_data_ch11": "synthetic_data with load_array",
    "train_ch11": "train_ch3, or a loop of your own with Animator",
    "train_concise_ch11": "train_ch3, or a loop of your own with Animator",
    **_LATER,
    **_TENSORS,
}


def sentence(name, known):
    """Why ``pydl.d2l`` has no attribute ``name``."""
    if name in INSTEAD:
        return f"pydl.d2l: {name} is not served; use {INSTEAD[name]}"
    return f"module 'pydl.d2l' has no attribute {name!r}" + did_you_mean(name, known)
