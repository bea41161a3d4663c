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
    page: dsl.Output[dsl.HTML],
) -> str:
    """Compare the window with the champion's reference: did it change, what, how much does it cost; triage faults.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        validation: What validation said: valid or invalid.
        metrics: p-value, accuracy drop (measured, and estimated without labels) and effect of each view.
        summary: What changed, in sentences.
        page: The same in pictures: how far each view moved, where the images lie, which moved most, past windows.

    Returns:
        no-champion, stable, drifted, new-classes, undecided (too few images to tell) or broken.
    """
    from components.core.markdown import plain
    from components.detect_drift import step

    report, html = step.run(config, run_id, window)
    for name, value in report.figures.items():
        metrics.log_metric(name, value)
    with open(summary.path, "w") as file:
        file.write(plain(report.sentence))
    with open(page.path, "w") as file:
        file.write(html)
    return report.word
