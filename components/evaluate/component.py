"""KFP doorway of the evaluation step."""

from kfp import dsl

from components.core.component import component


@component
def evaluate(
    config: str,
    run_id: str,
    window: str,
    challenger: str,
    rung: int,
    metrics: dsl.Output[dsl.Metrics],
    confusion_matrix: dsl.Output[dsl.ClassificationMetrics],
    summary: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
) -> str:
    """Score champion and challenger on the same rows of the old and of the new holdout.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        challenger: Version of the challenger.
        rung: Which attempt of the plan, from 1.
        metrics: Accuracies, flips, calibration and cost of both models.
        confusion_matrix: The challenger's, on the new holdout; of many classes those that it mistakes most.
        summary: The comparison in sentences.
        page: All of it: classes, slices, flips, calibration, old windows, cost.

    Returns:
        evaluated.
    """
    from components.core.markdown import plain
    from components.evaluate import step
    from components.evaluate.figures import confusion_table, list_figures

    evaluation, html = step.run(config, run_id, window, challenger, rung)
    for name, value in list_figures(evaluation).items():
        metrics.log_metric(name, value)
    confusion_matrix.log_confusion_matrix(*confusion_table(evaluation.new))
    with open(summary.path, "w") as file:
        file.write(plain(evaluation.sentence))
    with open(page.path, "w") as file:
        file.write(html)
    return evaluation.word
