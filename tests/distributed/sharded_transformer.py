"""Training steps of a small transformer on a mesh of 4 x 2 devices, and on one, by each design.

`JAX_NUM_CPU_DEVICES=8 python sharded_transformer.py NAME...` prints a line of JSON a design: how
far parameters and state of the two are apart after a step, and the shapes of what was gathered.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from design_cases import TABLE, perturbed_theta
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

WIDTH, LENGTH, VOCABULARY, BATCH, STEPS = 24, 8, 40, 8, 3
INIT = nnx.initializers.lecun_normal()


def linear(inputs: int, outputs: int, spec: P, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    """A layer whose matrix is sharded so, and whose bias as its outputs."""
    return nnx.Linear(
        inputs,
        outputs,
        rngs=rngs,
        use_bias=use_bias,
        kernel_init=nnx.with_partitioning(INIT, spec),
        bias_init=nnx.with_partitioning(nnx.initializers.zeros_init(), (spec[1],)),
    )


class Transformer(nnx.Module):
    """One block, sharded as in Megatron-LM: columns of what widens, rows of what narrows."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        wide, narrow = P(None, "model"), P("model", None)
        self.tokens = nnx.Embed(
            VOCABULARY, WIDTH, rngs=rngs, embedding_init=nnx.with_partitioning(INIT, narrow)
        )
        # Without a bias: that of keys has no gradient but rounding errors.
        self.inputs = linear(WIDTH, 3 * WIDTH, wide, rngs, use_bias=False)
        self.outputs = linear(WIDTH, WIDTH, narrow, rngs)
        self.up = linear(WIDTH, 4 * WIDTH, wide, rngs)
        self.down = linear(4 * WIDTH, WIDTH, narrow, rngs)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(3)])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens of shape (batch, length) to logits."""
        x = self.tokens(tokens)
        heads = lambda y: y.reshape(*y.shape[:2], 2, -1)
        q, k, v = map(heads, jnp.split(self.inputs(self.norms[0](x)), 3, axis=-1))
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.outputs(attended.reshape(x.shape))
        x = x + self.down(jax.nn.gelu(self.up(self.norms[1](x))))
        return self.tokens.attend(self.norms[2](x))


def loss_fn(model: Transformer, tokens: jax.Array) -> jax.Array:
    logits = model(tokens[:, :-1])
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def rms(x: np.ndarray) -> float:
    """Of single numbers Adam makes 1e-4 out of a gradient that is nothing but rounding errors."""
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def compare(name: str) -> dict[str, object]:
    """Train on one device and on the mesh."""
    design = TABLE.get(name)
    tx = (
        design.transform(jax.tree.map(lambda t: 0.5 * t, perturbed_theta(name)), horizon=10)
        if design
        else optax.with_extra_args_support(optax.adamw(1e-2))
    )
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        model = Transformer(nnx.Rngs(0))
        graph, state = nnx.split((model, nnx.Optimizer(model, tx, wrt=nnx.Param)))
    placed = lambda spec: NamedSharding(mesh, spec)
    specs = nnx.get_partition_spec(state)
    shardings = jax.tree.map(placed, specs, is_leaf=lambda x: isinstance(x, P))
    tokens = jax.random.randint(jax.random.key(1), (BATCH, LENGTH + 1), 0, VOCABULARY)

    def step(state: nnx.State, tokens: jax.Array) -> tuple[nnx.State, jax.Array]:
        model, optimizer = nnx.merge(graph, state)
        loss, grads = nnx.value_and_grad(loss_fn)(model, tokens)
        optimizer.update(model, grads, value=loss)
        return nnx.state((model, optimizer)), loss

    alone = jax.jit(step)
    batch = placed(P("data", None))
    sharded = (
        jax.jit(
            step,
            in_shardings=(shardings, batch),
            out_shardings=(shardings, placed(P())),
            donate_argnums=0,
        )
        .lower(state, tokens)
        .compile()
    )
    state = jax.device_put(jax.tree.map(np.asarray, state), jax.devices()[0])
    apart = 0.0
    for _ in range(STEPS):  # from equal states, as rounding errors grow from step to step
        before, state = jax.tree.map(np.array, state), alone(state, tokens)[0]
        found, _ = sharded(jax.device_put(before, shardings), jax.device_put(tokens, batch))
        for leaves in zip(*map(jax.tree.leaves, (found, state, before)), strict=True):
            x, y, start = (np.asarray(leaf, float) for leaf in leaves)
            apart = max(apart, rms(x - y) / (1e-3 + rms(y) + rms(y - start)))
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\][^=]* all-gather\(", sharded.as_text())
    return {"design": name, "apart": apart, "gathered": sorted(set(gathered))}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(compare(name)), flush=True)
