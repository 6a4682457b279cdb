"""The pieces of PPO and DPO, each against a case computed by hand, exact values, or plain torch."""

import math

import pytest
import torch

from pydl import models
from pydl.rlhf import (
    AdaptiveCoefficient,
    clipped_loss,
    dpo_loss,
    exact_kl,
    gae,
    kl_estimates,
    log_probs,
    log_probs_and_entropy,
    masked_mean,
    pairwise_loss,
    response_mask,
    value_loss,
    whitened,
)
from pydl.rlhf.log_probs import distribution

SMALL = {"vocab_size": 7, "hidden": 16, "layers": 2, "heads": 4, "positions": 12, "dropout": 0.0}


def doubles(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_response_mask_leaves_out_prompts_and_padding():
    mask = response_mask(torch.tensor([1, 3, 2]), torch.tensor([4, 5, 2]), 5)
    assert mask.int().tolist() == [[0, 1, 1, 1, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]


def test_means_and_whitening_see_the_mask_alone():
    mask = torch.tensor([[True, True, False], [False, True, False]])
    values = doubles([1.0, 3.0, math.nan], [math.inf, 8.0, -5.0])
    assert masked_mean(values, mask) == 4.0
    white = whitened(values, mask)
    scale = math.sqrt((9 + 1 + 16) / 3)
    torch.testing.assert_close(white, doubles([-3.0, -1.0, 0.0], [0.0, 4.0, 0.0]) / scale)
    assert masked_mean(values, torch.zeros_like(mask)) == 0.0
    torch.testing.assert_close(whitened(torch.ones(2, 3), mask), torch.zeros(2, 3))


def test_gae_by_hand():
    # γ = 0.5, λ = 0.5; the row's tokens are columns 1 to 3, what stands around them is noise
    rewards, values = doubles([9.0, 1.0, 0.0, 2.0, 9.0]), doubles([9.0, 4.0, 2.0, 6.0, 9.0])
    mask = torch.tensor([[False, True, True, True, False]])
    # δ_3 = 2 + 0 - 6 = -4; δ_2 = 0 + 0.5·6 - 2 = 1; δ_1 = 1 + 0.5·2 - 4 = -2
    # A_3 = -4; A_2 = 1 + 0.25·(-4) = 0; A_1 = -2 + 0.25·0 = -2
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    torch.testing.assert_close(advantages, doubles([0.0, -2.0, 0.0, -4.0, 0.0]))
    torch.testing.assert_close(returns, doubles([0.0, 2.0, 2.0, 2.0, 0.0]))


def test_gae_at_its_ends():
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 3, 8, dtype=torch.float64)
    mask = response_mask(torch.tensor([1, 2, 3]), torch.tensor([8, 6, 4]), 8)
    advantages, returns = gae(rewards, values, mask, 0.9, 1.0)
    for row, (first, end) in enumerate([(1, 8), (2, 6), (3, 4)]):
        for t in range(first, end):  # λ = 1: all that is to come, discounted, less what was expected
            total = sum(0.9 ** (k - t) * rewards[row, k] for k in range(t, end))
            torch.testing.assert_close(returns[row, t], total)
            torch.testing.assert_close(advantages[row, t], total - values[row, t])
    advantages, _ = gae(rewards, values, mask, 0.9, 0.0)  # λ = 0: one step alone
    torch.testing.assert_close(advantages[0, 3], rewards[0, 3] + 0.9 * values[0, 4] - values[0, 3])
    torch.testing.assert_close(advantages[1, 5], rewards[1, 5] - values[1, 5])
    assert (advantages[~mask] == 0).all()


@pytest.mark.parametrize(
    "ratio, advantage, gradient",
    [
        (1.0, 2.0, 2.0),
        (1.0, -2.0, -2.0),
        (1.2 - 1e-9, 2.0, 2.0),  # below the upper kink: as without a clip
        (1.2 + 1e-9, 2.0, 0.0),  # above it: none
        (1.3, -2.0, -2.0),  # likelier and worse: never cut off
        (0.8 + 1e-9, -2.0, -2.0),
        (0.8 - 1e-9, -2.0, 0.0),
        (0.7, 2.0, 2.0),
        (1.0, 0.0, 0.0),
    ],
)
def test_the_clipped_objectives_gradient_on_both_sides_of_its_kinks(ratio, advantage, gradient):
    new = doubles([math.log(ratio)]).requires_grad_()
    loss, cut = clipped_loss(new, doubles([0.0]), doubles([advantage]), torch.ones(1, 1, dtype=torch.bool), 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(-min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage))
    assert new.grad.item() == pytest.approx(-gradient * ratio, abs=1e-12)  # dρ / d log π = ρ
    assert cut.item() == (gradient == 0.0 and advantage != 0.0)


def test_the_clipped_objectives_gradient_at_its_kinks_is_that_from_inside():
    for epsilon, advantage in ((0.5, 2.0), (0.5, -2.0)):  # 1.5 and 0.5 are exact
        ratio = doubles([1 + epsilon if advantage > 0 else 1 - epsilon])
        old = -ratio.log()
        new = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        assert (new - old).exp().item() == ratio.item()
        loss, cut = clipped_loss(new, old, doubles([advantage]), torch.ones(1, 1, dtype=torch.bool), epsilon)
        loss.backward()
        assert new.grad.item() == pytest.approx(-advantage * ratio.item())
        assert cut == 0


def plain_clipped_loss(new, old, advantages, mask, epsilon):
    """Torch's own, row by row: no tensors of ours."""
    terms = []
    for n, o, a in zip(new[mask], old[mask], advantages[mask], strict=True):
        ratio = torch.exp(n - o)
        terms.append(torch.min(ratio * a, torch.clamp(ratio, 1 - epsilon, 1 + epsilon) * a))
    return -torch.stack(terms).mean()


def test_losses_equal_plain_torchs():
    torch.manual_seed(1)
    new, old, advantages, values, returns = 0.3 * torch.randn(5, 6, 9)
    mask = response_mask(torch.tensor([1, 2, 3, 4, 5, 1]), torch.tensor([9, 9, 8, 5, 6, 2]), 9)
    mine, plain = new.clone().requires_grad_(), new.clone().requires_grad_()
    loss, expected = clipped_loss(mine, old, advantages, mask)[0], plain_clipped_loss(plain, old, advantages, mask, 0.2)
    loss.backward(), expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(mine.grad, plain.grad)
    torch.testing.assert_close(
        value_loss(values, returns, mask), 0.5 * torch.nn.functional.mse_loss(values[mask], returns[mask])
    )
    better, worse, reference_better, reference_worse = torch.randn(4, 10) * 20
    logits = 0.1 * (better - worse) - 0.1 * (reference_better - reference_worse)
    expected = -torch.nn.functional.logsigmoid(logits).mean()
    torch.testing.assert_close(dpo_loss(better, worse, reference_better, reference_worse, 0.1), expected)
    torch.testing.assert_close(pairwise_loss(better, worse), -torch.nn.functional.logsigmoid(better - worse).mean())


def test_kl_estimators_against_the_exact_value():
    torch.manual_seed(2)
    p, q = torch.randn(2, 6, dtype=torch.float64).log_softmax(-1)
    exact = exact_kl(p, q)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(exact, expected)
    # their expectations are sums, so that nothing is left to chance
    k1, k2, k3 = (p.exp() @ k for k in kl_estimates(p, q))
    torch.testing.assert_close(k1, exact)
    torch.testing.assert_close(k3, exact)
    torch.testing.assert_close(k2, 0.5 * (p.exp() * (p - q) ** 2).sum())
    assert abs(k2 - exact) > 1e-3  # the biased one
    near = (p + 0.01 * (q - p)).log_softmax(-1)
    k1, k2, _ = (near.exp() @ k for k in kl_estimates(near, p))
    torch.testing.assert_close(k2, k1, rtol=0.02, atol=0)  # which is good near by
    assert (kl_estimates(p, q)[2] >= 0).all()
    assert (kl_estimates(p, q)[0] < 0).any()


def test_the_coefficient_follows_its_target():
    one = AdaptiveCoefficient(0.2, 6.0)
    one.update(6.0)
    assert one.value == 0.2
    one.update(600.0)
    assert one.value == pytest.approx(0.2 * 1.04)
    one.update(0.0)
    assert one.value == pytest.approx(0.2 * 1.04 * 0.96)
    one.update(6.6)
    assert one.value == pytest.approx(0.2 * 1.04 * 0.96 * 1.02)


def gpt_and_rows():
    torch.manual_seed(3)
    model = models.get("gpt", **SMALL)
    tokens = torch.randint(1, 7, (4, 10))
    prompts, lengths = torch.tensor([1, 2, 3, 4]), torch.tensor([10, 7, 9, 4])
    tokens[torch.arange(10) >= lengths.unsqueeze(1)] = 0
    return model, tokens, response_mask(prompts, lengths, 10)


def plain_log_probs(model, tokens):
    """(N, T, 6) of every token but <unk> for the next place, by torch's own functions from the logits."""
    logits = model(tokens)[0]
    return torch.log_softmax(logits[..., 1:].double(), -1)


def test_log_probs_equal_those_from_the_logits(device):
    model, tokens, mask = gpt_and_rows()
    model, tokens, mask = model.to(device), tokens.to(device), mask.to(device)
    plain = plain_log_probs(model, tokens)
    mine = log_probs(model, tokens, mask)
    again, entropy = log_probs_and_entropy(model, tokens, mask)
    for row, t in mask.nonzero().tolist():
        expected = plain[row, t - 1]
        for each in (mine, again):
            assert each[row, t].item() == pytest.approx(expected[tokens[row, t] - 1].item(), rel=1e-4, abs=1e-5)
        assert entropy[row, t].item() == pytest.approx(-(expected.exp() * expected).sum().item(), rel=1e-4)
    assert (mine[~mask] == 0).all()
    assert (entropy[~mask] == 0).all()
    torch.testing.assert_close(distribution(model, tokens).double(), plain, rtol=1e-4, atol=1e-5)


def test_what_is_masked_has_no_say(device):
    """Padding behind the end changes no number, and neither padding nor prompts get a gradient of their own."""
    model, tokens, mask = gpt_and_rows()
    model, tokens, mask = model.to(device), tokens.to(device), mask.to(device)
    changed = tokens.clone()
    changed[1, 7:], changed[3, 4:] = 5, 6
    mine, other = log_probs(model, tokens, mask), log_probs(model, changed, mask)
    assert torch.equal(mine, other)
    grads = []
    for rows in (tokens, changed):
        model.zero_grad()
        log_probs(model, rows, mask).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


def test_gradients_of_ppo_and_dpo_equal_plain_torchs(device):
    """The whole way from the weights to the loss, beside logits, log_softmax and gather of torch."""
    model, tokens, mask = gpt_and_rows()
    model, tokens, mask = model.to(device), tokens.to(device), mask.to(device)
    old, advantages = -2 + 0.3 * torch.randn(2, *tokens.shape, device=device)
    references = -5 + torch.randn(2, 2, device=device)

    def losses(values, entropy):
        policy = clipped_loss(values, old, advantages, mask)[0] - 0.1 * masked_mean(entropy, mask)
        return policy, dpo_loss(*values.sum(1).view(2, 2), *references)

    def grads(loss):
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for number in range(2):
        values, entropy = log_probs_and_entropy(model, tokens, mask)
        if number:
            values = log_probs(model, tokens, mask)
        mine = losses(values, entropy)[number]
        plain = plain_log_probs(model, tokens)[:, :-1]
        chosen = plain.gather(2, (tokens[:, 1:] - 1).clamp_min(0).unsqueeze(2)).squeeze(2)
        rows = [torch.nn.functional.pad(t, (1, 0)) * mask for t in (chosen, -(plain.exp() * plain).sum(-1))]
        logits = 0.1 * (rows[0].sum(1).view(2, 2) - references)
        expected = (
            -torch.nn.functional.logsigmoid(logits[0] - logits[1]).mean()
            if number
            else plain_clipped_loss(rows[0], old, advantages, mask, 0.2) - 0.1 * rows[1][mask].mean()
        )
        torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grads(mine), grads(expected), rtol=1e-3, atol=1e-5)
