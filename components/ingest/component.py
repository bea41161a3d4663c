"""KFP doorway of the ingest step."""

from kfp import dsl

from components.core.component import component


@component
def ingest(config: str, run_id: str, source: str, strategy: str, window_summary: dsl.Output[dsl.Markdown]) -> str:
    """Turn the delivered images into an immutable window, named by its content.

    What no run has taken yet is claimed for this run first, so that no other one takes it; a run that finds another one
    at its claim stops here.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        source: new: what was delivered below trigger.source and no run has taken. Or a folder or s3:// prefix of class
            folders (<label>/<image>), of unlabelled images, of WebDataset tars or of Parquet files with images; or one
            .csv, .parquet or .tar file; or the id of a window that exists; or batch:N, what a claim took.
        strategy: What was asked for: auto, the name of a strategy, or plan:DIGEST. Filed with the run.
        window_summary: How many images came, of which classes, and what was set aside.

    Returns:
        The window's id. The same images give the same id.
    """
    from components.core.markdown import plain
    from components.ingest import step

    document = step.run(config, run_id, source, strategy)
    with open(window_summary.path, "w") as file:
        file.write(plain(document.sentence))
    return document.word
