"""Policy gradient in a grid world: what an environment, a reward, a policy and a baseline are, in one screen.

An agent walks from S; a step costs 0.04, the goal G gives 1, the pit P takes 1, and one step in five slips to a side.
Nobody tells it the way: it tries, and actions that were followed by more than was expected become likelier (REINFORCE:
Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning", Machine Learning
1992; the world is that of Russell and Norvig, "Artificial Intelligence", chapter 17).

Run: python examples/reinforce.py [PICTURE]; the same idea teaches a language model: pydl train ppo -h
"""

import sys

import torch

import pydl
from pydl import nn

WORLD = ["...G", ".#.P", "S..."]
MOVES = torch.tensor([[-1, 0], [0, 1], [1, 0], [0, -1]])  # up, right, down, left
ARROWS, STEP_COST, SLIP, LONGEST = "↑→↓←", -0.04, 0.2, 40
places = torch.tensor([[ord(letter) for letter in row] for row in WORLD])
rows, columns = places.shape
start = (places == ord("S")).nonzero()[0]


def step(at, action):
    """The environment: (new places (N, 2), rewards (N,), whether it is over (N,)) after actions at places."""
    slipped = torch.rand(len(at)) < SLIP
    action = torch.where(slipped, (action + 1 + 2 * torch.randint(2, action.shape)) % 4, action)
    to = (at + MOVES[action]).clamp(torch.tensor(0), torch.tensor([rows - 1, columns - 1]))
    to = torch.where((places[to[:, 0], to[:, 1]] == ord("#")).unsqueeze(1), at, to)  # walls are not entered
    there = places[to[:, 0], to[:, 1]]
    over = (there == ord("G")) | (there == ord("P"))
    return to, STEP_COST + (there == ord("G")).float() - (there == ord("P")).float(), over


def episodes(policy, count):
    """(states, actions, returns, mask), each (steps, count): what ``count`` agents did, and what came of it."""
    at, over = start.expand(count, 2), torch.zeros(count, dtype=torch.bool)
    states, actions, rewards, mask = [], [], [], []
    with torch.no_grad():
        for _ in range(LONGEST):
            state = at[:, 0] * columns + at[:, 1]
            action = torch.multinomial(policy(state).softmax(1), 1).squeeze(1)
            to, reward, ended = step(at, action)
            for kept, value in ((states, state), (actions, action), (rewards, reward), (mask, ~over)):
                kept.append(value)
            at, over = torch.where(over.unsqueeze(1), at, to), over | ended
            if over.all():
                break
    states, actions, rewards, mask = map(torch.stack, (states, actions, rewards, mask))
    returns = (rewards * mask).flip(0).cumsum(0).flip(0)  # what is still to come, from each step on
    return states, actions, returns, mask


def losses(policy, values, baseline, count):
    """(the policy's loss, the baseline's, the mean return) of ``count`` episodes."""
    states, actions, returns, mask = episodes(policy, count)
    expected = values(states).squeeze(2)
    advantages = returns - expected.detach() if baseline else returns
    chosen = policy(states).log_softmax(2).gather(2, actions.unsqueeze(2)).squeeze(2)
    # the gradient of the mean return: that of log π(action), times how much better it went than expected
    return -(chosen * advantages)[mask].mean(), (expected - returns)[mask].square().mean(), returns[0].mean().item()


def train(baseline, seed):
    """(policy, values, the mean return of each update)."""
    torch.manual_seed(seed)
    policy = nn.Embedding(rows * columns, 4)  # logits of the actions in each place
    values = nn.Embedding(rows * columns, 1)  # what is expected there: the baseline
    torch.nn.init.zeros_(policy.weight), torch.nn.init.zeros_(values.weight)
    optimizer, curve = pydl.optim.Adam([*policy.parameters(), *values.parameters()], lr=0.1), []
    for _ in range(120):
        loss, error, mean = losses(policy, values, baseline, 4)
        optimizer.zero_grad()
        (loss + error).backward()
        optimizer.step()
        curve.append(mean)
    return policy, values, curve


curves = {}
for baseline in (True, False):
    found = [train(baseline, seed) for seed in range(3)]
    curves["with a baseline" if baseline else "without"] = torch.tensor([curve for *_, curve in found])
    if baseline:
        policy, values, _ = found[0]
for name, curve in curves.items():
    means = ", ".join(f"{value:+.2f}" for value in curve.mean(0).view(6, -1).mean(1).tolist())
    print(f"mean return of 20 updates each, {name}: {means}")
print(f"return at the end with a baseline: {curves['with a baseline'][:, -20:].mean():.2f}")

noise = {}
for baseline in (True, False):
    gradients = []
    for _ in range(50):
        (gradient,) = torch.autograd.grad(losses(policy, values, baseline, 4)[0], policy.weight)
        gradients.append(gradient)
    noise[baseline] = torch.stack(gradients).var(0).sum()
print(f"variance of the policy's gradient without the baseline over that with it: {noise[False] / noise[True]:.1f}")

best = policy.weight.argmax(1).view(rows, columns)
for i, row in enumerate(WORLD):
    print(" ".join(ARROWS[best[i, j]] if letter in ".S" else letter for j, letter in enumerate(row)))

if len(sys.argv) > 1:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        (line,) = axes.plot(curve.mean(0), label=name)
        axes.fill_between(range(curve.shape[1]), curve.amin(0), curve.amax(0), color=line.get_color(), alpha=0.2)
    axes.set(xlabel="update, 4 episodes each", ylabel="return: mean, range of 3 seeds")
    axes.legend(frameon=False)
    figure.savefig(sys.argv[1])
    print(f"{sys.argv[1]} holds the curves")
