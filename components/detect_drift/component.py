"""KFP doorway of the drift step."""

from kfp import dsl

from components.core.component import component


@component
def detect_drift(
    config: str,
    run_id: str,
    window: str,
    validation: str,
    drift_metrics: dsl.Output[dsl.Metrics],
    drift_summary: dsl.Output[dsl.Markdown],
    drift_page: dsl.Output[dsl.HTML],
) -> str:
    """Compare the window with the champion's reference: did it change, what, how much does it cost; triage faults.

    It needs no labels: without them the champion's loss of accuracy is estimated from its confidence. How often it may
    cry wolf is `drift.alarms_per_year`. Signs of a broken camera or pipeline end in quarantine.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        validation: What validation said: valid or invalid.
        drift_metrics: Rows, p-value, accuracy drop (measured, and estimated without labels) and effect of each view.
        drift_summary: What changed, in sentences.
        drift_page: The same in pictures: how far each view moved, where the images lie, which moved most, past windows.

    Returns:
        no-champion, stable, drifted, new-classes, undecided (too few images to tell) or broken.
    """
    from components.core.markdown import plain
    from components.detect_drift import step

    report, html = step.run(config, run_id, window)
    for name, value in report.figures.items():
        drift_metrics.log_metric(name, value)
    with open(drift_summary.path, "w") as file:
        file.write(plain(report.sentence))
    with open(drift_page.path, "w") as file:
        file.write(html)
    return report.word
