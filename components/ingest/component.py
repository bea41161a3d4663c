"""KFP doorway of the ingest step."""

from kfp import dsl

from components.core.component import component


@component
def ingest(config: str, run_id: str, source: str, strategy: str, summary: dsl.Output[dsl.Markdown]) -> str:
    """Turn the delivered images into an immutable window, named by its content.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        source: Folder or s3:// prefix of class folders (<label>/<image>), of WebDataset tars or of Parquet files with
            images; or one .csv, .parquet or .tar file; or the id of a window that exists.
        strategy: What was asked for: auto, the name of a strategy, or plan:DIGEST. Filed with the run.
        summary: How many images came, of which classes, and what was set aside.

    Returns:
        The window's id. The same images give the same id.
    """
    from components.core.markdown import plain
    from components.ingest import step

    document = step.run(config, run_id, source, strategy)
    with open(summary.path, "w") as file:
        file.write(plain(document.sentence))
    return document.word
