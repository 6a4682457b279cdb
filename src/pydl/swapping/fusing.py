"""The forward of a container whose layers are partly fused, the plan it follows, and when a plan still holds.

A plan is made when the model is swapped, and again when something that it was made from has changed: the children,
their class, their own forward, whether they have hooks, attributes that a traced forward read. All of that is compared
at each call, by identity, in about a microsecond; what changes too often is called layer by layer. Copies and loaded
models make their own plans.
"""

import torch
from torch.nn.modules import module as _module

from pydl import backend
from pydl.swapping import chains
from pydl.swapping.binding import BoundForward

# global hooks see every call of every module: nothing is fused while there is one
_GLOBAL_HOOKS = tuple(
    getattr(_module, name)
    for name in (
        "_global_forward_hooks",
        "_global_forward_pre_hooks",
        "_global_backward_hooks",
        "_global_backward_pre_hooks",
    )
)
_MOST_PLANS = 8


def _sees_all(hooks):
    return hooks[0] or hooks[1] or hooks[2] or hooks[3]


class Facts:
    """What a plan was made from, and whether that is still so.

    The container itself stands as None in the lists: a reference to it would make a cycle.
    """

    def __init__(self, module):
        self.function = type(module).forward
        self.children = []  # (owner, name, child): the module under a name, None where it is declared as none
        self.sequences = []  # (owner, children): all of them, in order
        self.links = []  # (layer, class, forward bound to the instance, whether it has hooks)
        self.values = []  # (owner, name, value): plain attributes of immutable types, compared by ==
        self._root = module
        self._seen = set()

    def add_child(self, owner, name, child):
        """A child that was looked up by its name."""
        self._add(self.children, owner, name, child)

    def add_sequence(self, owner):
        """Children that were iterated over."""
        self._add(self.sequences, owner, tuple(owner._modules.values()))

    def add_value(self, owner, name, value):
        """A plain attribute that was read."""
        self._add(self.values, owner, name, value)

    def add_link(self, layer):
        """Everything that decides whether a layer may be part of a chain."""
        self._add(self.links, layer, type(layer), layer.__dict__.get("forward"), chains.has_hooks(layer.__dict__))

    def _add(self, facts, owner, *what):
        key = (id(facts), id(owner), what[0])
        if key not in self._seen:
            self._seen.add(key)
            facts.append((None if owner is self._root else owner, *what))

    def complete(self):
        """Forgets what was needed for collecting only."""
        del self._root, self._seen
        return self

    def hold(self, module):
        """Whether nothing has changed in the container ``module``, and no hook is to see every module."""
        if _sees_all(_GLOBAL_HOOKS) or type(module).forward is not self.function or not self.same_children(module):
            return False
        for layer, cls, forward, hooked in self.links:
            attributes = layer.__dict__
            if (
                layer.__class__ is not cls
                or attributes.get("forward") is not forward
                or chains.has_hooks(attributes) is not hooked
            ):
                return False
        for owner, name, value in self.values:
            now = getattr(module if owner is None else owner, name, self)
            if now is not value and (type(now) is not type(value) or now != value):
                return False
        return True

    def same_children(self, module):
        """Whether the container still has the children that the plan was made for."""
        for owner, children in self.sequences:
            if tuple((module if owner is None else owner)._modules.values()) != children:
                return False
        for owner, name, child in self.children:
            if (module if owner is None else owner)._modules.get(name, self) is not child:
                return False
        return True


class Plan:
    """How one container is computed: ``run(module, *inputs)``, for a fixed number of tensors."""

    def __init__(self, facts, found=(), run=None, inputs=1, left=None, why_not=""):
        self.facts = facts
        self.chains = list(found)
        self.run = run
        self.inputs = inputs
        self.left = left or {}  # path of a layer -> why it is in no chain, where it could be
        self.why_not = why_not  # why the whole forward is called as it is


class FusedForward(BoundForward):
    """The ``forward`` of a container: its plan's, or its class's where no plan holds."""

    def __init__(self, module):
        super().__init__(module)
        self.plans = []  # replaced, never changed: other threads may be reading it
        self.current = None  # the plan of the last call
        self.changes = 0  # how many plans have been made

    def __call__(self, *args, **kwargs):
        module = self._module()
        if module is None:
            module = self.module()
        if args and not kwargs and _plain(args):
            plan = self.known_plan(module) if torch.compiler.is_compiling() else self.plan(module)
            if plan is not None and plan.inputs == len(args) and plan.run is not None:
                return plan.run(module, *args)
        return type(module).forward(module, *args, **kwargs)

    def plan(self, module):
        """The plan that holds now, made if there is none; None while hooks see every module, or after many changes."""
        plan = self.current
        if plan is not None and plan.facts.hold(module):  # the common case
            return plan
        if _sees_all(_GLOBAL_HOOKS):
            return None
        plan = self.known_plan(module)
        if plan is None and self.changes < _MOST_PLANS:
            from pydl.swapping.planning import make_plan  # which needs this file

            plan = make_plan(module)
            self.changes += 1
            # plans for children that are gone would keep them alive
            self.plans = [*(known for known in self.plans if known.facts.same_children(module)), plan]
        self.current = plan
        return plan

    def known_plan(self, module):
        """The plan that holds among those made so far: torch.compile, which calls this, cannot make one."""
        for plan in self.plans:
            if plan.facts.hold(module):
                return plan
        return None


_disabled = torch._C._disabled_torch_function_impl


def _plain(args):
    """Whether all are tensors that no other library intercepts, on a device that our kernels serve."""
    for arg in args:
        cls = type(arg)
        if cls is not torch.Tensor and not (
            isinstance(arg, torch.Tensor) and (cls is torch.nn.Parameter or cls.__torch_function__ is _disabled)
        ):
            return False
    return backend.ops_for(args[0]) is not None
