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
    evaluation_metrics: dsl.Output[dsl.Metrics],
    confusion_matrix: dsl.Output[dsl.ClassificationMetrics],
    evaluation_summary: dsl.Output[dsl.Markdown],
    evaluation_page: dsl.Output[dsl.HTML],
) -> str:
    """Score champion and challenger on the same rows of the old and of the new holdout.

    Neither has learnt from these images: they are held out for good, by content. Every answer is kept in the store,
    runs/RUN/answers-RUNG.parquet.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        challenger: Version of the challenger.
        rung: Which attempt of the plan, from 1.
        evaluation_metrics: Accuracies, flips, calibration and cost of both models.
        confusion_matrix: The challenger's, on the new holdout; of many classes those that it mistakes most.
        evaluation_summary: The comparison in sentences.
        evaluation_page: All of it: classes, slices, flips, calibration, old windows, cost.

    Returns:
        evaluated.
    """
    from components.core.markdown import plain
    from components.evaluate import step
    from components.evaluate.figures import confusion_table, list_figures

    evaluation, html = step.run(config, run_id, window, challenger, rung)
    for name, value in list_figures(evaluation).items():
        evaluation_metrics.log_metric(name, value)
    confusion_matrix.log_confusion_matrix(*confusion_table(evaluation.new))
    with open(evaluation_summary.path, "w") as file:
        file.write(plain(evaluation.sentence))
    with open(evaluation_page.path, "w") as file:
        file.write(html)
    return evaluation.word
