"""KFP doorway of the training step."""

from kfp import dsl

from components.core.component import component


@component
def train(
    config: str,
    run_id: str,
    window: str,
    rung: int,
    gpu_type: str,
    gpu_count: str,
    training_metrics: dsl.Output[dsl.Metrics],
    training_summary: dsl.Output[dsl.Markdown],
) -> str:
    """Train a challenger: one rung of the plan's ladder.

    A training that was cut off goes on from its last checkpoint when it is started again, in whichever run: *Retry* and
    *Clone run* lose nothing but `training.checkpoint_seconds`.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        rung: Which attempt of the plan, from 1.
        gpu_type: Resource name of the GPU this pod asks for; empty means CPU.
        gpu_count: How many of them.
        training_metrics: Rows, seconds, images a second, last loss, attempts.
        training_summary: What was trained, on what, for how long.

    Returns:
        The challenger's version.
    """
    from components.core.markdown import plain
    from components.train import step

    trained = step.run(config, run_id, window, rung)
    training_metrics.log_metric("rows", trained.rows)
    training_metrics.log_metric("seconds", trained.seconds)
    training_metrics.log_metric("images_per_second", trained.images_per_second)
    training_metrics.log_metric("loss", trained.losses[-1])
    training_metrics.log_metric("attempts", trained.attempts)
    with open(training_summary.path, "w") as file:
        file.write(plain(trained.sentence))
    return trained.word
