"""KFP doorway of the validation step."""

from kfp import dsl

from components.core.component import component


@component
def validate(config: str, run_id: str, window: str, summary: dsl.Output[dsl.Markdown]) -> str:
    """Check the window's manifest with Great Expectations: readable, labelled, large enough, not flooded.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        summary: Every expectation, and whether it holds.

    Returns:
        valid or invalid. An invalid window ends in quarantine; the champion stays as it is.
    """
    from components.validate import step

    report = step.run(config, run_id, window)
    with open(summary.path, "w") as file:
        file.write(report.markdown)
    return report.word
