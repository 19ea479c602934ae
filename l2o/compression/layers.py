"""Layers of a network: which arrays hold weights, and how often each weight is multiplied.

The multiply-adds of a layer are read off the program of `apply` on one row: what a matrix product
or a convolution of the layer's weights, however reshaped, with numbers that depend on the inputs
costs. An embedding table, from which rows are only read, costs none.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from l2o.tree import named_leaves


class Layer(NamedTuple):
    """Array of weights that can be compressed.

    Attributes:
        name: Path of the array in the parameters, such as `layers/0/kernel`.
        shape: Shape; the last axis is that of the layer's units, or of a convolution's channels.
        multiply_adds: Multiply-adds of the layer for one row of inputs.
    """

    name: str
    shape: tuple[int, ...]
    multiply_adds: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Find the names that are most like one that is not known, at most three."""
    known = list(known)
    return difflib.get_close_matches(name, known, n=3) or known[:3]


def leaves_by_name(params: Any) -> dict[str, Any]:
    """Name the arrays of a network, in the order of its leaves.

    >>> list(leaves_by_name({"dense": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}}))
    ['dense/bias', 'dense/kernel']

    Raises:
        ValueError: If an array has no name of its own.
    """
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        if not path or any(isinstance(key, jax.tree_util.FlattenedIndexKey) for key in path):
            kind, place = type(params).__name__, jax.tree_util.keystr(path) or "its top"
            raise ValueError(
                f"`params` must name its layers; got {kind} with an array at {place}. "
                "Try nested dicts, such as nnx.to_pure_dict gives."
            )
    return named_leaves(params)


def is_layer(leaf: Any) -> bool:
    """Tell whether an array is compressed: real numbers of two axes or more, not a bias or norm."""
    return leaf.ndim >= 2 and leaf.size > 0 and jnp.issubdtype(leaf.dtype, jnp.floating)


class Uses(NamedTuple):
    """How a program uses arrays.

    Attributes:
        multiply_adds: Multiply-adds of each array with numbers that depend on the inputs.
        order: Names in the order in which they first meet such numbers.
    """

    multiply_adds: Mapping[str, int]
    order: tuple[str, ...]


def uses(apply: Callable[[Any, Any], Any], params: Any, row: Any) -> Uses:
    """Count how a network uses its arrays on one row of inputs.

    >>> network = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"].T
    >>> params = {"b": jnp.ones((2, 3)), "a": jnp.ones((5, 3))}
    >>> uses(network, params, jnp.ones((1, 5)))
    Uses(multiply_adds={'a': 15, 'b': 6}, order=('a', 'b'))

    Args:
        apply: Function `(params, inputs) -> outputs`.
        params: Parameters, or their shapes.
        row: Inputs of one row, or their shapes.
    """
    leaves = leaves_by_name(params)
    closed = jax.make_jaxpr(apply)(params, row)
    counter = _Counter({name: leaf.size for name, leaf in leaves.items()})
    known = [frozenset([name]) for name in leaves]
    known += [DATA] * (len(closed.jaxpr.invars) - len(known))
    counter.walk(closed.jaxpr, known, 1)
    return Uses(counter.multiply_adds, tuple(counter.order))


Source = frozenset[str]
"""What a number is made of: the names of arrays, `DATA` if it depends on the inputs, or nothing."""

DATA: Source = frozenset([""])

NOTHING: Source = frozenset()


class _Counter:
    """Walks a program and counts; `sizes` are those of the arrays."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.multiply_adds = dict.fromkeys(sizes, 0)
        self.order: list[str] = []

    def walk(self, jaxpr: Jaxpr, given: Sequence[Source], times: int) -> list[Source]:
        """Count a program that runs so many times; returns what its results are made of."""
        known = dict(zip(jaxpr.invars, given, strict=True))
        source = lambda atom: known.get(atom, NOTHING) if isinstance(atom, Var) else NOTHING
        for equation in jaxpr.eqns:
            results = self.enter(equation, [source(atom) for atom in equation.invars], times)
            known.update(zip(equation.outvars, results, strict=True))
        return [source(atom) for atom in jaxpr.outvars]

    def enter(self, equation: JaxprEqn, given: list[Source], times: int) -> list[Source]:
        """Count one equation, and the programs inside of it."""
        inner = [p for p in jax.tree.leaves(equation.params, is_leaf=_is_program) if _is_program(p)]
        if equation.primitive.name == "scan":
            times = times * equation.params["length"]
            # What is carried has the same shape inside; what is scanned over has an axis less.
            body = inner[0].jaxpr
            carried = sum(map(_is_as_inside, equation.outvars, body.outvars))
            scanned = len(given) - sum(map(_is_as_inside, equation.invars, body.invars))
            given = self.settled(inner[0], given, len(given) - scanned - carried, carried)
        elif equation.primitive.name == "cond":
            given = given[1:]  # the index; every branch takes the rest
        elif equation.primitive.name == "while":
            inner = [equation.params["body_jaxpr"]]  # once: nobody knows how often it runs
            carried, taken = len(equation.outvars), len(inner[0].jaxpr.invars)
            given = given[len(given) - taken :]  # without what the condition alone takes
            given = self.settled(inner[0], given, taken - carried, carried)
        results = None
        for program in inner:
            jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
            if len(jaxpr.invars) == len(given):
                results = self.walk(jaxpr, given, times)
        if results and len(results) == len(equation.outvars):
            return results
        return [self.apply(equation, given, times)] * len(equation.outvars)

    def settled(
        self, body: ClosedJaxpr, given: list[Source], first: int, number: int
    ) -> list[Source]:
        """What the inputs of a loop's body are made of once what it carries has come round."""
        while True:
            results = _Counter(self.sizes).walk(body.jaxpr, given, 1)[:number]
            carried = list(map(_either, given[first : first + number], results))
            if carried == given[first : first + number]:
                return given
            given = [*given[:first], *carried, *given[first + number :]]

    def apply(self, equation: JaxprEqn, given: list[Source], times: int) -> Source:
        """Count one equation by itself."""
        arrays = frozenset().union(*given) - DATA
        if DATA not in given:
            return arrays
        self.order += [name for name in self.sizes if name in arrays and name not in self.order]
        if arrays:  # of several that were added up, such as low-rank factors, it is the largest's
            largest = max(arrays, key=lambda name: self.sizes[name])
            self.multiply_adds[largest] += times * _multiply_adds(equation)
        return DATA


def _is_as_inside(outside: Any, inside: Any) -> bool:
    return _shape(outside) == _shape(inside)


def _either(one: Source, other: Source) -> Source:
    return DATA if DATA in (one, other) else one | other


def _is_program(thing: Any) -> bool:
    return isinstance(thing, Jaxpr | ClosedJaxpr)


def _multiply_adds(equation: JaxprEqn) -> int:
    """Multiply-adds of a matrix product or convolution; 0 of anything else."""
    outputs = int(np.prod(_shape(equation.outvars[0]), dtype=int))
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = _shape(equation.invars[0])
        return outputs * int(np.prod([shape[axis] for axis in contracted], dtype=int))
    if equation.primitive.name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return outputs * int(np.prod(kernel, dtype=int)) // features
    return 0


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape
