"""Cache variables of SGLang in the shell draw one warning with the recipe lines that do the same."""

from difftool.cli.sglang import cache_variables_warning


def test_no_variable_draws_no_warning():
    assert cache_variables_warning({"PATH": "/bin", "SGLANG_USE_X": "1"}) is None


def test_every_variable_becomes_its_recipe_line():
    warning = cache_variables_warning(
        {
            "SGLANG_CACHE_DIT_TS_ORDER": "2",
            "SGLANG_CACHE_DIT_ENABLED": "true",
            "SGLANG_CACHE_DIT_FN": "8",
            "SGLANG_CACHE_DIT_BN": "0",
            "SGLANG_CACHE_DIT_WARMUP": "4",
            "SGLANG_CACHE_DIT_RDT": "0.12",
            "SGLANG_CACHE_DIT_MC": "3",
            "SGLANG_CACHE_DIT_TAYLORSEER": "True",
            "SGLANG_CACHE_DIT_SCM_PRESET": "medium",
            "SGLANG_CACHE_DIT_SCM_POLICY": "dynamic",
            "SGLANG_CACHE_DIT_SCM_COMPUTE_BINS": "8,3,3,2,2",
            "SGLANG_CACHE_DIT_SCM_CACHE_BINS": "1 2 2 2 3",
            "SGLANG_CACHE_DIT_SECONDARY_FN": "4",
        }
    )
    assert warning.split("in the recipe, write\n")[1] == (
        "  cache:\n"
        "    backend: dbcache\n"
        "    fn_compute_blocks: 8\n"
        "    bn_compute_blocks: 0\n"
        "    max_warmup_steps: 4\n"
        "    residual_diff_threshold: 0.12\n"
        "    max_continuous_cached_steps: 3\n"
        "    taylorseer:\n"
        "      enabled: true\n"
        "      order: 2\n"
        "    scm:\n"
        "      preset: medium\n"
        "      policy: dynamic\n"
        "      compute_bins: [8, 3, 3, 2, 2]\n"
        "      cache_bins: [1, 2, 2, 2, 3]\n"
        "    secondary:\n"
        "      fn_compute_blocks: 4"
    )


def test_a_variable_without_a_counterpart_is_named():
    assert cache_variables_warning({"SGLANG_CACHE_DIT_ENABLED": "0", "SGLANG_CACHE_DIT_LOG": "x"}) == (
        "warning: SGLANG_CACHE_DIT_ENABLED, SGLANG_CACHE_DIT_LOG: set, but difftool reads no such variable; "
        "in the recipe, write\n"
        "  cache:\n"
        "    backend: none\n"
        "  # SGLANG_CACHE_DIT_LOG has no counterpart"
    )
