"""The tests that `-m "not slow"` leaves out: they train longer, start many processes, or try many inputs.

A name is a file below tests/, or a test in it. The other tests take about a minute; CI runs all.
"""

SLOW = (
    # Trainings and passes of whole nets, repeated for each set of kernels, rule, loss or bottom shape.
    "net/test_fast_paths.py",
    "net/test_cuda_graph.py",
    "net/test_changing_shapes.py",
    "net/test_compiled_norm.py",
    "net/test_large_nets.py",
    "layers/forks/test_multibox_loss.py::test_gradient_is_the_derivative",
    "layers/forks/test_multibox_loss.py::test_ssd300_runs_in_a_moment",
    "layers/forks/test_detection_output.py::test_ssd300_runs_in_a_moment",
    "train/test_recorded_runs.py",
    "train/test_solver.py::test_lenet_trains_as_in_caffe",
    "train/test_small_ssd.py",
    "prototxt/test_models.py",
    "paper/test_paper_report.py",
    "paper/test_report_on_a_phone.py",
    "layers/forks/test_yolo_training.py",
    "layers/test_record_order.py::test_every_image_and_class_is_as_likely_as_any_other",
    "benchmarks/test_benchmarks.py",
    "benchmarks/test_nets.py",
    # torch's compiler alone takes seconds to be imported.
    "converters/test_torch_module.py::test_torch_export",
    "converters/test_torch_module.py::test_torch_compile_makes_one_graph",
    "converters/test_torch_module.py::test_odd_names_go_through_torch_export_and_compile",
    "converters/test_torch_module.py::test_each_type_goes_through_torch_export",
    "converters/test_torch_module.py::test_each_type_gives_the_same_under_torch_compile",
    "converters/test_pytorch_page.py",
    # Processes that are started, stopped or killed.
    "cli/test_startup.py",
    "cli/test_main.py::test_the_script_runs_from_anywhere",
    "cli/test_main.py::test_help_waits_for_no_library_that_it_does_not_need",
    "layers/test_data_cache.py",
    "layers/test_broken_plugins.py",
    "cli/test_user_code.py",
    "files/test_pipes.py",
    "converters/test_runtimes.py",
    "converters/test_stopped_converters.py",
    "docs/test_pages_run.py",
    "docs/test_plugins_page.py::test_the_page",
    "converters/test_html_page_in_browser.py",
    "train/test_doctor.py::test_the_examiner_can_do_no_harm",
    "train/test_doctor.py::test_hostile_files_are_rows",
    "benchmarks/test_zoo.py::test_the_table",
    "layers/test_plugin_package.py",
    "paper/test_demo.py",
    "paper/test_paper_runner.py",
    "paper/test_sweep.py",
    "paper/test_label_noise_page.py::test_the_page",
    "train/test_ranks.py",
    "train/test_resume.py::test_killed_twenty_times_and_resumed_it_is_the_run_that_was_left_alone",
    "train/test_snapshot.py::test_killed_at_any_moment_the_last_snapshot_is_whole",
    "train/test_flipped_snapshots.py::test_a_flipped_bit_anywhere_is_passed_over",
    "train/test_unlucky_runs.py",
    # Many files, or large ones.
    "layers/test_fields.py::test_every_field_does_something_or_is_refused",
    "files/test_untrusted_files.py::test_an_onnx_model_gets_the_memory_that_is_free",
    "files/test_untrusted_files.py::test_an_archive_that_unpacks_to_too_much",
    "files/test_untrusted_files.py::test_one_data_set_under_many_names_counts_many_times",
    "converters/test_opsets.py",
    "test_fuzz.py",
)


def is_slow(node: str) -> bool:
    """Whether the test with this pytest name (tests/net/test_x.py::test_y[z]) is in the list."""
    file, _, test = node.partition("tests/")[2].partition("::")
    return file in SLOW or f"{file}::{test.partition('[')[0]}" in SLOW
