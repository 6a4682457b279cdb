"""The Transformer's encoder and BERT, beside torch's own layer and by shapes."""

import pytest
import torch
from torch import nn

import pydl
from pydl import d2l


def test_a_block_is_torchs_layer():
    torch.manual_seed(0)
    ours = d2l.TransformerEncoderBlock(24, 48, 8, 0.5, use_bias=True).eval()
    theirs = nn.TransformerEncoderLayer(24, 8, 48, 0.5, batch_first=True).eval()
    attention = ours.attention
    state = {
        "self_attn.in_proj_weight": torch.cat([getattr(attention, f"W_{name}").weight for name in "qkv"]),
        "self_attn.in_proj_bias": torch.cat([getattr(attention, f"W_{name}").bias for name in "qkv"]),
        "self_attn.out_proj.weight": attention.W_o.weight,
        "self_attn.out_proj.bias": attention.W_o.bias,
    }
    for number, layer in ((1, ours.ffn.dense1), (2, ours.ffn.dense2)):
        state |= {f"linear{number}.weight": layer.weight, f"linear{number}.bias": layer.bias}
    for number, layer in ((1, ours.addnorm1.ln), (2, ours.addnorm2.ln)):
        state |= {f"norm{number}.weight": layer.weight, f"norm{number}.bias": layer.bias}
    theirs.load_state_dict(state)
    X, lengths = torch.randn(2, 10, 24), torch.tensor([3, 10])
    behind = torch.arange(10) >= lengths.unsqueeze(1)
    expected = theirs(X, src_key_padding_mask=behind)
    found = ours(X, lengths)
    torch.testing.assert_close(found[~behind], expected[~behind], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pydl.swap(ours)(X, lengths), found, rtol=1e-4, atol=1e-5)


def test_both_editions_blocks():
    X, lengths = torch.ones(2, 100, 24), torch.tensor([3, 2])
    earlier = d2l.EncoderBlock(24, 24, 24, 24, [100, 24], 24, 48, 8, 0.5).eval()
    assert earlier(X, lengths).shape == X.shape
    assert earlier.addnorm1.ln.normalized_shape == (100, 24)
    with pytest.raises(ValueError, match="EncoderBlock: expected key_size to be num_hiddens, 24, got 25"):
        d2l.EncoderBlock(25, 24, 24, 24, [100, 24], 24, 48, 8, 0.5)
    assert d2l.PositionWiseFFN(4, 8)(torch.ones(2, 3, 4)).shape == (2, 3, 8)
    assert d2l.PositionWiseFFN(4, 4, 8)(torch.ones(2, 3, 4)).shape == (2, 3, 8)
    Y = d2l.AddNorm(4, 0.5).eval()(torch.ones(2, 3, 4), torch.arange(4.0).expand(2, 3, 4))
    torch.testing.assert_close(Y, nn.functional.layer_norm(1 + torch.arange(4.0).expand(2, 3, 4), (4,)))


@pytest.mark.parametrize("arguments", [
    (200, 24, 24, 24, 24, [100, 24], 24, 48, 8, 2, 0.5),
    (200, 24, 48, 8, 2, 0.5),
])  # fmt: skip
def test_encoder(arguments):
    encoder = d2l.TransformerEncoder(*arguments).eval()
    lengths = torch.tensor([3, 2])
    found = encoder(torch.ones((2, 100), dtype=torch.long), lengths)
    assert found.shape == (2, 100, 24)
    first, second = encoder.attention_weights
    assert first.shape == second.shape == (16, 100, 100)
    assert not first[:8, :, 3:].any()
    assert not first[8:, :, 2:].any()


@pytest.mark.parametrize("later", [False, True])
def test_bert(later):
    torch.manual_seed(0)
    if later:
        model = d2l.BERTModel(50, 32, 64, 4, 2, 0.2, max_len=16).eval()
    else:
        model = d2l.BERTModel(
            50, num_hiddens=32, norm_shape=[32], ffn_num_input=32, ffn_num_hiddens=64, num_heads=4, num_layers=2,
            dropout=0.2, max_len=16, key_size=32, query_size=32, value_size=32, hid_in_features=32, mlm_in_features=32,
            nsp_in_features=32,
        ).eval()  # fmt: skip
    tokens = torch.randint(0, 50, (2, 8))
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]])
    positions = torch.tensor([[1, 5, 2], [6, 1, 5]])
    encoded, masked, following = model(tokens, segments, torch.tensor([8, 6]), positions)
    assert (encoded.shape, masked.shape, following.shape) == ((2, 8, 32), (2, 3, 50), (2, 2))
    torch.testing.assert_close(masked[1, 0], model.mlm.mlp(encoded[1, 6]))
    changed = tokens.clone()
    changed[1, 6:] = 0  # behind the valid length of that sentence
    again = model(changed, segments, torch.tensor([8, 6]))
    torch.testing.assert_close(again[0][1, :6], encoded[1, :6])
    assert again[1] is None
    other = model(tokens, 1 - segments, torch.tensor([8, 6]))[0]
    assert not torch.allclose(other, encoded)
    with pytest.raises(ValueError, match="expected mlm_in_features to be num_hiddens, 32, got 768"):
        d2l.BERTModel(50, 32, [32], 32, 64, 4, 2, 0.2, mlm_in_features=768)


def test_pairs_of_sentences():
    assert d2l.get_tokens_and_segments(["a"]) == (["<cls>", "a", "<sep>"], [0, 0, 0])
    tokens, segments = d2l.get_tokens_and_segments(["a"], ["b", "c"])
    assert tokens == ["<cls>", "a", "<sep>", "b", "c", "<sep>"]
    assert segments == [0, 0, 0, 1, 1, 1]
