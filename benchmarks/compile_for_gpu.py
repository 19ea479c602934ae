"""Whether updates compile for a GPU, and how long it takes, on a machine without one.

`pip install 'jax[cuda13]'`, then `python benchmarks/compile_for_gpu.py --designs nominal_mlp
--trees digits --population 8`: one update of a design is compiled for an H100 by XLA's own compiler
for GPUs, without autotuning, which needs the device. A population is that of an evolution
strategy: each member has its own theta, parameters and state. Each program has a process of its
own, which `--limit` ends.
"""

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import tyro

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA's compiler asks about a device: XLA's `GpuTargetConfigProto`, as text; the figures are
those of openxla/xla's pull request 25919."""


@dataclass(frozen=True)
class Options:
    """Compiles an update of every design on every tree, for an H100."""

    designs: tuple[str, ...] = ("adafac_mlp", "celo", "mlp_lopt", "nominal_mlp")
    """Names from `l2o list`."""
    trees: tuple[str, ...] = ("digits", "mlp")
    """`digits` (64-32-32-10), or a tree of `update_cost.py`."""
    population: int = 0
    """Members that are vmapped over; none if 0."""
    limit: float = 120.0
    """Seconds after which one counts as never."""


def compile_update(design: str, tree: str, population: int) -> None:
    """Compile one update and print what it took."""
    import jax
    import jax.numpy as jnp
    import optax
    import update_cost
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from l2o.registry import DESIGNS

    gpu = topologies.get_topology_desc("", "cuda", target_config=H100, topology="1x1x1").devices[0]
    shapes = update_cost.mlp((64, 32, 32, 10)) if tree == "digits" else update_cost.TREES[tree]()
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=update_cost.is_shape,
    )
    lopt = DESIGNS[design]()
    transform = lambda theta: lopt.transform(theta, horizon=update_cost.HORIZON)

    def update(theta: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = transform(theta).update(grads, state, params, value=jnp.float32(1.0))
        return optax.apply_updates(params, updates), state

    theta = jax.eval_shape(lopt.init, jax.random.key(0))
    state = jax.eval_shape(lambda theta, params: transform(theta).init(params), theta, params)
    arguments = (theta, params, state, params)
    if population:
        member = lambda x: jax.ShapeDtypeStruct((population, *x.shape), x.dtype)
        arguments, update = jax.tree.map(member, arguments), jax.vmap(update)
    place = SingleDeviceSharding(gpu)
    lowered = jax.jit(update, in_shardings=place, out_shardings=place).lower(*arguments)
    started = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    seconds = time.perf_counter() - started
    megabytes = memory.temp_size_in_bytes / 1e6 if memory else 0.0
    print(f"{tree} {design}: {seconds:.1f} s, {megabytes:.2f} MB of temporary memory", flush=True)


def main(options: Options) -> None:
    """Compile one after the other."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",  # for all that is run; what is compiled is placed on the GPU
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0",
    }
    spawn = multiprocessing.get_context("spawn")
    for tree in options.trees:
        for design in options.designs:
            process = spawn.Process(target=compile_update, args=(design, tree, options.population))
            process.start()
            process.join(options.limit)
            if process.is_alive():
                process.kill()
                process.join()
                print(f"{tree} {design}: not in {options.limit:g} s", flush=True)
            elif process.exitcode:
                sys.exit(process.exitcode)


if __name__ == "__main__":
    main(tyro.cli(Options))
