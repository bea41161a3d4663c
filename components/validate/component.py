"""KFP doorway of the validation step."""

from kfp import dsl

from components.core.component import component


@component
def validate(
    config: str, run_id: str, window: str, summary: dsl.Output[dsl.Markdown], page: dsl.Output[dsl.HTML]
) -> str:
    """Check the window's manifest with Great Expectations: readable, labelled, large enough, not flooded, no leaks.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        summary: Every expectation, and whether it holds.
        page: The same as Data Docs: each expectation with samples of what was found.

    Returns:
        valid or invalid. An invalid window ends in quarantine; the champion stays as it is.
    """
    from components.validate import step

    report, html = step.run(config, run_id, window)
    with open(summary.path, "w") as file:
        file.write(report.markdown)
    with open(page.path, "w") as file:
        file.write(html)
    return report.word
