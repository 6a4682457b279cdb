"""Batch norm folded into the convolution before it: at the call, and once by pydl.freeze."""

import copy

import pytest
import torch
from swap_models import assert_as_unfused, image, ops_of
from testing import assert_close
from torch import nn

import pydl


@pytest.mark.best_isa
@pytest.mark.large
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Identity])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "layer, options",
    [
        (nn.Conv2d, {"padding": 1}),
        (nn.ConvTranspose2d, {"stride": 2, "output_padding": 1}),
        (nn.ConvTranspose2d, {"padding": 1, "dilation": 2, "groups": 3}),
    ],
    ids=["convolution", "transposed", "transposed, in groups"],
)
def test_folded_at_the_call_and_by_freeze(layer, options, bias, affine, activation, device):
    net = nn.Sequential(layer(3, 6, 3, bias=bias, **options), nn.BatchNorm2d(6, affine=affine), activation())
    for _ in range(3):
        net(image() * 2 + 1)
    if affine:
        nn.init.normal_(net[1].weight)
        nn.init.normal_(net[1].bias)
    net.eval()
    oracle = copy.deepcopy(net).double()
    large, small = image(8, 3, 80, 80), image(2, 3, 5, 5)
    net = pydl.swap(net.to(device))
    with torch.no_grad():
        for x in (large, small):
            assert_close(net(x.to(device)), oracle(x.double()), scale=10)
        pydl.freeze(net)
        assert "frozen" in pydl.report(net).rows[0].fused
        for x in (large, small):
            assert_close(net(x.to(device)), oracle(x.double()), scale=10)


def test_what_folding_runs():
    net = pydl.swap(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())).eval()
    small = image(2, 3, 5, 5)
    assert ops_of(net, image(8, 3, 80, 80)) == ["pydl::conv2d_forward"]
    assert ops_of(net, small) == ["pydl::conv2d_forward", "pydl::batch_norm_forward"]
    pydl.freeze(net)
    assert ops_of(net, small) == ["pydl::conv2d_forward"]


def test_what_folding_into_a_transposed_convolution_runs():
    net = pydl.swap(nn.Sequential(nn.ConvTranspose2d(3, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU())).eval()
    small = image(2, 3, 5, 5)
    assert ops_of(net, image(8, 3, 80, 80)) == ["pydl::conv_transpose2d"]
    assert ops_of(net, small) == ["pydl::conv_transpose2d", "pydl::batch_norm_forward"]
    pydl.freeze(net)
    assert ops_of(net, small) == ["pydl::conv_transpose2d"]
    net[0].padding_mode = "reflect"  # which torch refuses
    with torch.no_grad(), pytest.raises(ValueError, match="zeros"):
        net(small)


def test_a_frozen_model_notices_new_weights_and_trains_on():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    x = image(2, 3, 5, 5)
    assert pydl.freeze(net) is net
    assert not net.training
    keys = list(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).state_dict())
    assert list(net.state_dict()) == keys

    def agrees():
        with torch.no_grad():
            assert_close(net(x), pydl.unswap(copy.deepcopy(net)).double()(x.double()), scale=10)

    agrees()
    with torch.no_grad():
        net[0].weight.mul_(2)
    agrees()
    pydl.freeze(net)
    net[1].running_mean.add_(1)
    agrees()
    pydl.freeze(net)
    net.load_state_dict({name: value + 0.5 for name, value in net.state_dict().items()})
    agrees()
    pydl.freeze(net)
    net[1].eps = 0.5
    agrees()
    net.train()
    assert_as_unfused(pydl.unswap(net), image())
    pydl.freeze(pydl.swap(net))
    net(x).sum().backward()  # with gradients: through convolution and batch norm
    assert net[0].weight.grad is not None


@pytest.mark.parametrize("inside", ["0.weight", "1.bias", "1.running_var"])
def test_tensors_made_under_inference_mode_are_not_frozen_in_words(inside):
    """They have no version: a write to them could not be seen."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 2, 1), nn.BatchNorm2d(2))
    with torch.inference_mode():
        layer, name = net[int(inside[0])], inside[2:]
        if name in layer._buffers:
            layer._buffers[name] = layer._buffers[name].clone()
        else:
            layer._parameters[name] = nn.Parameter(layer._parameters[name].clone(), requires_grad=False)
    x = image(2, 3, 5, 5)
    with pytest.warns(UserWarning, match="0 and 1 are not folded: tensors made under inference_mode have no version"):
        pydl.freeze(net)
    rows = pydl.report(net).rows
    assert "not frozen: tensors made under inference_mode have no version" in rows[1].fused
    assert "frozen" in rows[3].fused
    assert ops_of(net, x).count("pydl::batch_norm_forward") == 1
    with torch.inference_mode():
        for _ in range(2):
            assert_close(net(x), pydl.unswap(copy.deepcopy(net)).double()(x.double()), scale=10)
            tensor = layer._buffers.get(name, layer._parameters.get(name))
            tensor.mul_(3)  # no version counts it


def test_a_model_made_under_inference_mode_follows_its_weights():
    with torch.inference_mode():
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
        with pytest.warns(UserWarning, match="not folded"):
            pydl.freeze(net)
        x = torch.ones(1, 1, 3, 3)
        net(x)
        for weight in (2.0, 4.0):
            net[0].weight.fill_(weight)
            net[0].bias.zero_()
            assert_close(net(x), torch.full((1, 2, 3, 3), weight).double(), scale=10)
