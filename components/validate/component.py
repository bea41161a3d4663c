"""KFP doorway of the validation step."""

from kfp import dsl

from components.core.component import component


@component
def validate(
    config: str, run_id: str, window: str, expectations: dsl.Output[dsl.Markdown], data_docs: dsl.Output[dsl.HTML]
) -> str:
    """Check the window's manifest with Great Expectations: readable, large enough, not flooded, no leaks.

    Thresholds are those of the section `validation`. Missing labels are a warning: whether more are needed is said by
    the step `decide`. Where a person knows better, `retrain release WINDOW --reason TEXT` lets a quarantined window
    pass.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        expectations: Every expectation, and whether it holds.
        data_docs: The same as Data Docs: each expectation with samples of what was found.

    Returns:
        valid or invalid. An invalid window ends in quarantine; the champion stays as it is.
    """
    from components.validate import step

    report, html = step.run(config, run_id, window)
    with open(expectations.path, "w") as file:
        file.write(report.markdown)
    with open(data_docs.path, "w") as file:
        file.write(html)
    return report.word
