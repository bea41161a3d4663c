"""What was delivered: find the labelled images of a folder of class folders.

Covers listing and telling "this is no image" (you pointed at the wrong thing: an error) from "this image is broken"
(a delivery fault: counted, and judged by validation). Not covered: decoding (`inspection`).
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.core.config import IngestConfig
from components.core.errors import ConfigurationError, SourceError

# First bytes of the formats that are read. An empty file counts as a broken image.
SIGNATURES = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM|RIFF....WEBP|II\*\x00|MM\x00\*|\Z", re.DOTALL)


def names_window(source: str) -> bool:
    """Whether a source is the id of a window that exists already, rather than a folder."""
    return re.fullmatch(r"[0-9a-f]{32}", source) is not None


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One delivered file. `name` is its path below the source, with `/`; `label` its first folder."""

    path: Path
    name: str
    label: str
    group: str | None


def list_images(source: Path, config: IngestConfig) -> list[SourceImage]:
    """List a folder of class folders, in order of name.

    Args:
        source: `source/<label>/.../<image>`.
        config: Names to pass over, and the group pattern.

    Raises:
        SourceError: No folder, no class folder, no image, a file outside the class folders, or a file that is no image.
        ConfigurationError: The group pattern is no regular expression with a group.
    """
    group_of = _group_pattern(config.group_pattern)
    if not source.is_dir():
        raise SourceError(
            f"{source} is {'a file' if source.exists() else 'not there'}",
            expected="a folder of class folders: SOURCE/<label>/<image>",
            next_command="retrain run FOLDER",
        )
    images = []
    for path in _walk(source, config.ignore):
        name = path.relative_to(source).as_posix()
        if not name.isprintable():
            raise SourceError(
                f"a file name that is not printable text: {name!r}",
                expected="names in UTF-8 without control characters",
                next_command="rename it",
            )
        label, separator, _ = name.partition("/")
        if not separator:
            raise SourceError(
                f"{path} lies outside the class folders",
                expected="every image in the folder of its label: SOURCE/<label>/<image>",
                next_command=f"move it, or add {name!r} to ingest.ignore",
            )
        with path.open("rb") as file:
            head = file.read(16)
        if not SIGNATURES.match(head):
            raise SourceError(
                f"{path} is no image: it starts with {head!r}",
                expected="JPEG, PNG, GIF, BMP, WebP or TIFF",
                next_command=f"remove it, or add {path.name!r} to ingest.ignore",
            )
        match = group_of.search(name) if group_of else None
        images.append(SourceImage(path=path, name=name, label=label, group=match[1] if match else None))
    if not images:
        raise SourceError(
            f"{source} holds no images",
            expected="class folders with images in them: SOURCE/<label>/<image>",
            next_command="check the path; `ls` it",
        )
    return images


def _group_pattern(pattern: str | None) -> re.Pattern[str] | None:
    try:
        compiled = re.compile(pattern) if pattern else None
    except re.error as error:
        compiled, pattern = None, f"{pattern} ({error})"
    else:
        if compiled is None or compiled.groups:
            return compiled
    raise ConfigurationError(
        f"ingest.group_pattern is {pattern}",
        expected="a regular expression with one group, such as '(clip-[0-9]+)'",
        next_command="mend ingest.group_pattern",
    )


def _walk(folder: Path, ignore: tuple[str, ...]) -> Iterator[Path]:
    """Files below a folder in order of name. Links to files are followed; any other link is an error, not a silence."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if any(fnmatch.fnmatch(entry.name, pattern) for pattern in ignore):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), ignore)
        elif entry.is_symlink() and not Path(entry.path).is_file():
            raise SourceError(
                f"{entry.path} is a link that leads to no file",
                expected="images, or links to images; folders themselves",
                next_command="replace it by what it stands for (cp -rL), or add its name to ingest.ignore",
            )
        elif entry.is_file():
            yield Path(entry.path)
