"""KFP doorway of the drift step."""

from kfp import dsl

from components.core.component import component


@component
def detect_drift(
    config: str,
    run_id: str,
    window: str,
    validation: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Compare the window with the champion's reference sample: images, labels, new classes, accuracy; triage faults.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        validation: What validation said: valid or invalid.
        metrics: p-value, accuracies and effect of each view.
        summary: What changed, in sentences.

    Returns:
        no-champion, stable, drifted, new-classes or broken.
    """
    from components.detect_drift import step

    report = step.run(config, run_id, window)
    for name, value in report.figures.items():
        metrics.log_metric(name, value)
    with open(summary.path, "w") as file:
        file.write(report.sentence)
    return report.word
