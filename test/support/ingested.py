"""A bag made into its one session."""

from __future__ import annotations

from pathlib import Path

from training.ingest import ingest as ingestion
from training.ingest.config import IngestConfig
from training.ingest.ingest import Outcome
from training.ingest.progress import Progress


def ingest(path: Path, output: Path, config: IngestConfig) -> Outcome:
    [outcome] = ingestion.ingest(path, output, config, Progress())
    return outcome
