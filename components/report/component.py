"""KFP doorway of the report, the exit task."""

from kfp import dsl

from components.core.component import component


@component
def report(config: str, run_id: str, status: dsl.PipelineTaskFinalStatus, run_page: dsl.Output[dsl.HTML]) -> str:
    """Tell how the run ended: page, metrics, run record. Runs after success and after a failed step.

    Kubeflow starts it whatever happened, unless a person terminates the run. Page and metrics are in the store as well,
    as runs/RUN/report.html and metrics.prom; a Pushgateway gets the metrics where `report.pushgateway` names one.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        status: What the engine says of the run.
        run_page: The run with its reasons, checks and pictures.

    Returns:
        promoted, waiting, skipped, quarantined, rejected, held or failed.
    """
    from components.report import step

    told, html = step.run(config, run_id, status.state)
    with open(run_page.path, "w") as file:
        file.write(html)
    return told.word
