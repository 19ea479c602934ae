"""Starting points of the command line; every option can be changed by its flag."""

from collections.abc import Mapping

from l2o.cli.methods.estimators import NRES, PES
from l2o.cli.methods.method import MetaOptimizer
from l2o.cli.methods.policy_gradients import PPO
from l2o.cli.settings import Evaluation, MetaTraining

PRESETS: Mapping[str, MetaTraining] = {
    "smoke": MetaTraining(
        task=("quadratic",),
        optimizer=("learnable_adam",),
        horizon=(40,),
        window=10,
        steps=20,
        checkpoint_every=10,
        method=PES(num_pairs=4, meta_optimizer=MetaOptimizer(learning_rate=0.03)),
        eval=Evaluation(seeds=8, baselines=("adam",)),
    ),
    "demo": MetaTraining(
        optimizer=("muon_mlp",),
        freeze=("direction/*", "mixture/*"),
        steps=300,
        method=NRES(
            num_pairs=8, std=0.05, final_std=0.02, meta_optimizer=MetaOptimizer(learning_rate=5e-3)
        ),
        eval=Evaluation(
            tasks=("digits_mlp_32x32", "digits_mlp_128x128"), baselines=("adam_cosine", "muon")
        ),
    ),
    "digits": MetaTraining(
        horizon=(100, 500),
        steps=3000,
        eval=Evaluation(horizon=1000, baselines=("adam_cosine", "muon")),
    ),
    "general": MetaTraining(
        task=("l2o.tasks.general:general",),
        optimizer=("muon_mlp",),
        freeze=("direction/*", "mixture/*"),
        horizon=(100, 500),
        steps=300,
        method=NRES(
            num_pairs=8, std=0.05, final_std=0.02, meta_optimizer=MetaOptimizer(learning_rate=5e-3)
        ),
        eval=Evaluation(horizon=500, baselines=("nadamw", "muon")),
    ),
    "scheduler": MetaTraining(
        optimizer=("scheduler",),
        horizon=(300, 1500),
        window=300,
        steps=2000,
        method=PPO(meta_optimizer=MetaOptimizer(learning_rate=1e-3)),
        eval=Evaluation(horizon=1000, baselines=("sgdm", "sgdm_cosine")),
    ),
}
