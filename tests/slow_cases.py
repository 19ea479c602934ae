"""Cases of the tables of common behaviour that take seconds and show what other cases show, too.

`make slow` runs them; each table keeps cases of different kinds in the default suite.
"""

import re

SLOW_CASES = (
    r"test_robust\.py::test_a_robust_task_behaves_as_meta_training_expects\[(regression|own)\]",
    r"compression/test_compress\.py::test_learned_optimizers_fine_tune_and_statistics_stay",
    r"compression/test_searches\.py::test_every_search.*\[ppo-(bits|unit_flops)\]",
    r"compression/test_budget\.py::test_what_is_really_kept_is_within_the_budget\[conv_net\]",
    r"cli/test_search\.py::test_a_larger_budget_goes_on",
    r"test_settings\.py::test_what_becomes_of_several_tasks.*\[(combine=pc|combine=ca|weighting=l)",
    r"test_optimizers\.py::test_the_table_of_common_behaviour"
    r"\[(nominal_mlp|optimizer_selector|mlp_lopt|per_tensor_controller|celo|learnable_adam)\]",
    r"test_optimizers\.py::test_every_number_moves\[(nominal_mlp|scheduler|mlp_lopt|optimizer_s)",
    r"test_optimizers\.py::test_with_float64_enabled\[(per_tensor_c|nominal_mlp|optimizer_selector)",
    r"test_optimizers\.py::test_parameters_sharded_over_devices\[(optimizer_selector|per_ten|celo)",
    r"test_optimizers\.py::test_equal_shapes_sharded_otherwise.*\[(?!adafac_mlp|scheduler)",
    r"test_optimizers\.py::test_(nnx_optimizer|inside_masked_and_partition)\[(celo|nominal_mlp|per_)",
    r"test_per_tensor\.py::test_order_of_leaves_does_not_matter\[(nominal|scheduler|per_t|optimizer)",
    r"test_per_tensor\.py::test_small_tensors_of_one_shape.*\[(celo|nominal_mlp)\]",
    r"test_nets\.py::test_per_parameter_equals_the_matrix_form\[.*-[28]-",
    r"test_compilation\.py::test_every_estimator_meta_trains_every_design"
    r"\[(?!full_grad-celo|variance_weighted-scheduler|pes-adafac_mlp|nres-mlp_lopt|"
    r"full_es-per_tensor|es_single-nominal|truncated_grad-optimizer|truncated_es-learnable)",
    r"test_augmentation\.py::test_backpropagation_through_runs.*\[(noisy-valid|wrapped-|normalized-s)",
    r"test_augmentation\.py::test_other_splits_have.*\[reparametrized\]",
    r"test_settings\.py::test_every_setting_of_policies.*(log_l|clip_ratio|discount|minibatches)",
    r"test_evaluate\.py::test_metrics_of_an_image_task_are_of_the_whole_split",
    r"evolution/test_learner\.py::test_every_strategy_comes_near_the_minimum\[(CMA_ES|SimpleGA)",
    r"test_environment\.py::test_environment_trains_as_the_optimizer_that_ships\[(gru|batch)\]",
    r"test_environment\.py::test_limitation_difference_credit.*\[1\.0-",
    r"test_environment\.py::test_every_run_is_without_its_agents_from_its_own_start",
    r"test_ppo\.py::test_a_minibatch_whose_gradient_is_not_finite_is_left_out\[4\]",
    r"test_ppo\.py::test_the_clip_of_the_critic_does_not_depend_on_the_scale_of_rewards",
    r"test_policy_gradients\.py::test_two_devices_do_as_one",
    r"test_policy_gradients\.py::test_learning_earns_more\[reinforce\]",
    r"test_reinforce\.py::test_reinforce_is_unbiased\[(value-1-1|antithetic-2-5)\]",
    r"test_reinforce\.py::test_baselines_remove_what_a_group_shares",
    r"test_bbob\.py::test_functions_are_no_variants_of_each_other",
    r"test_networks\.py::test_networks_begin_near_guessing.*\[3\]",
    r"tasks/test_suite\.py::test_axes_are_what_their_names_say",
    r"test_gymnax_env\.py::test_(both_dialects|gymnasium_checks_it).*\[(optimizer_s|per_tensor)",
    r"test_sampling\.py::test_the_exact_gradient_is_the_reference",
    r"test_seen\.py::test_built_in_tasks_name_their_family\[(bbob|python_gru)\]",
    r"test_population\.py::test_a_pair_depends_on_its_global_index_only\[(nres|truncated_es)",
    r"test_population\.py::test_a_nan_member_masks_its_pair_only\[(nres|truncated_es|full_es)",
    r"test_population\.py::test_a_diverged_run_is_replaced.*\[(nres|truncated_es|es_single)\]",
    r"test_networks\.py::test_who_sees_whom_in_a_block\[attention\]",
    r"test_engines\.py::test_a_search_is_a_function_of_its_seed\[(optuna_tpe|optuna_cmaes|cosine)",
    r"test_text\.py::test_families_on_fetched_text.*\[(python_t|union_|moby_t|moby_gru|python_lstm)",
    r"test_bbob\.py::test_gradients_are_finite_where_a_run_ends\[(rosenbrock|schwefel|griewank|kats)",
    r"test_bbob\.py::test_values_are_evosax_s.*\[rosenbrock_rotated\]",
    r"test_compare\.py::test_an_optimizer_under_two_names_is_no_faster_than_itself\[momo",
    r"test_report\.py::test_a_picture_is_drawn_on_request",
    r"test_tuning\.py::test_a_finer_grid_gains_less_than_the_interval\[(muon|sgdm)\]",
    r"test_compare_hpo\.py::test_ways_to_meta_train_fit_every_budget\[(nres|CMA_ES)\]",
    r"test_policy\.py::test_agents_with_networks_of_their_own\[mlp\]",
    r"test_estimators\.py::test_weights_add_no_bias_to_skewed_gradients\[4\]",
)
"""Patterns of node ids."""


def is_slow_case(node_id: str) -> bool:
    """Whether a case of a table is left to `make slow`."""
    return any(re.search(pattern, node_id) for pattern in SLOW_CASES)
